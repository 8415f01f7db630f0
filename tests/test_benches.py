"""The benches that run seldom still run: a dry run on the CPU of what is meant for a card, and a short soak."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeport_runtime import Bundle, load

ROOT = Path(__file__).parents[1]
DRY = """
import sys
sys.path.insert(0, {bench!r})
import cuda
cuda.NETWORKS, cuda.BATCHES, cuda.ROUND_SECONDS = {{"cnn": 64}}, (1, 64), 0.01
sys.argv = ["cuda.py", *{arguments!r}]
raise SystemExit(cuda.main())
"""


def dry_run(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = DRY.format(bench=str(ROOT / "tests" / "bench"), arguments=[str(each) for each in arguments])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.long
def test_the_script_for_a_card_runs_to_its_end_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    bundles, results, written = tmp_path / "bundles", tmp_path / "results.jsonl", tmp_path / "table.md"
    assert dry_run("prepare", "--bundles", bundles).returncode == 0
    run = ("run", "--bundles", bundles, "--results", results, "--device", "cpu")
    assert dry_run(*run, "--seconds", 0).returncode == 3  # out of time, and nothing is lost
    done = dry_run(*run, "--seconds", 600)
    rows = {row["step"]: row for row in map(json.loads, results.read_text().splitlines())}
    assert done.returncode == 0, [row for row in rows.values() if "fault" in row]
    assert rows["machine"]["card"] == "no card: a dry run" and rows["parity cnn fp32"]["golden"] and rows["parity cnn fp32"]["worst_of_range"] == 0.0
    assert 0 < rows["parity cnn fp16"]["worst_of_range"] < 0.01
    assert set(rows["parity cnn fp32"]["placement"]) == {"CPUExecutionProvider"}
    assert rows["race cnn fp32 64"]["ms"] > rows["race cnn fp32 1"]["ms"] > 0 and rows["race cnn fp32 1"]["ms_on_device"] > 0
    assert rows["torch cnn fp32 64 compile"]["ms"] > 0
    assert rows["torch cnn fp16 1 eager"] == {
        **rows["torch cnn fp16 1 eager"],
        "skipped": "PyTorch's half precision is for cards",
    }
    before = results.read_text()
    assert dry_run(*run).returncode == 0 and results.read_text() == before  # every step is there
    assert dry_run("table", "--results", results, "--table", written).returncode == 0
    assert "| cnn | fp32 | pass | 0.0e+00 | CPU " in written.read_text() and "What failed" not in written.read_text()


@pytest.mark.long
def test_a_fault_on_the_card_is_written_down_and_the_rest_goes_on(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    assert dry_run("run", "--bundles", tmp_path / "none", "--results", results, "--device", "cpu", "--seconds", 600).returncode == 1
    rows = {row["step"]: row for row in map(json.loads, results.read_text().splitlines())}
    assert "no such folder" in rows["parity cnn fp32"]["fault"] and rows["torch cnn fp32 1 eager"]["ms"] > 0


@pytest.mark.parametrize("kind", ["edgeport", "onnxruntime", "openvino"])
def test_a_process_of_the_race_is_ready_takes_turns_and_leaves_its_answer(kind: str, tmp_path: Path) -> None:
    """What `make bench` and `make bench-accuracy` start for each engine."""
    bundle = ROOT / "examples" / "digits"
    contract = Bundle(bundle).manifest.contract
    shape = (4, contract.pixels.height, contract.pixels.width, contract.pixels.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    path = bundle if kind == "edgeport" else bundle / "model.onnx"
    files = {"images": str(tmp_path / "images.npy"), "answer": str(tmp_path / "answer.npy"), "path": str(path)}
    request = {**files, "kind": kind, "batch": 4, "threads": 1, "seconds": 0.01, "precision": "fp32", "latency": "lowest"}
    command = [sys.executable, ROOT / "tests" / "bench" / "engines.py", json.dumps(request)]
    done = subprocess.run(command, input="go\ngo\n", capture_output=True, text=True, check=False, timeout=300)
    ready, *times = done.stdout.splitlines()[-3:]
    assert ready == "ready" and all(float(each) > 0 for each in times), done
    with load(bundle, precision="fp32") as model:
        np.testing.assert_allclose(np.load(tmp_path / "answer.npy"), model.raw(images)[contract.outputs[0].name], atol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("sizes", [1, 50])
def test_a_short_soak_keeps_every_promise_that_no_clock_decides(sizes: int, tmp_path: Path) -> None:
    """Each answer is its image's own, and each request ends in one way that both sides counted."""
    code = f"""
import argparse, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "tests" / "bench")!r})
import soak
soak.DIRECT_SECONDS = 0.2
load = soak.Load(Path({str(ROOT / "examples" / "digits")!r}), {sizes})
memory = []
soak.saturated(load, 24, 2.0, memory)
soak.half_load(load, 100.0, 1.0)
seen = soak.refusals(load, 2.0)
assert seen["answered"] and seen["failed"] and seen["canceled"] and len(memory) >= 2, seen
print(dict(+load.wrong))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "{}"), done.stderr
