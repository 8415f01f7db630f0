"""What the fuzzer (`make fuzz`) reached and found is replayed, in processes of their own: a crash of native code is a failure, not the end of the suite."""

import json
import random
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

HERE = Path(__file__).parent
STORED = HERE / "fixtures" / "fuzz"
TARGETS = ("images", "manifest", "golden", "model")
sys.path.insert(0, str(HERE / "fuzz"))

from mutators import mutated_json, mutated_model  # noqa: E402
from seeds import seeds  # noqa: E402


def replay(target: str, *paths: Path, before: str = "pass") -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(HERE / 'fuzz')!r}); import targets; {before}; targets.main(sys.argv[1:])"
    command = [sys.executable, "-c", code, target, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("target", TARGETS)
def test_what_the_fuzzer_found_out_is_replayed(target: str) -> None:
    """Inputs that together reach everything that an hour of fuzzing reached, and all that once were findings."""
    archives = sorted(STORED.glob(f"{target}*.zip"))
    assert archives
    done = replay(target, *archives)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 50 and "died" not in done.stdout


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("images", "targets.prepare = lambda *_, **__: 1 / 0"),
        ("manifest", "targets.Bundle = lambda *_: {}['format']"),
        ("golden", "targets.load = lambda *_, **__: 1 / 0"),
        ("model", "targets._outline = lambda *_, **__: 1 / 0"),
    ],
)
def test_anything_but_a_documented_error_would_be_found(target: str, fault: str) -> None:
    done = replay(target, STORED / f"{target}.zip", before=fault)
    assert done.returncode != 0 and f"{target}: {target}.zip/" in done.stderr


def test_a_death_of_onnxruntime_would_be_found(tmp_path: Path) -> None:
    """In its own process, and told."""
    model = tmp_path / "model"
    model.write_bytes(next(seeds("model")))
    done = replay("model", model, before="targets.WORKER_S = 0.0; targets._Worker.asked = lambda self, data: 'exit status -11'")
    assert done.stdout == "1 inputs, onnxruntime died 1 times: ['exit status -11']\n"
    done = replay("model", model)
    assert done.stdout == "1 inputs\n"


def test_mutations_keep_the_form_of_their_input() -> None:
    manifest, model = next(seeds("manifest")), next(seeds("model"))
    changed = {mutated_json(manifest, random.Random(seed)) for seed in range(50)}
    assert len(changed) > 40 and all(json.loads(each) is not None for each in changed)
    models = {mutated_model(model, random.Random(seed)) for seed in range(50)}
    assert len(models) > 40 and all(onnx.load_from_string(each).graph.node for each in models)
