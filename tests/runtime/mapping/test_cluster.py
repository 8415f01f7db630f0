"""Workers on a local Ray: the rows of `predict`, each image answered once although workers and drivers are killed. Ray has an environment of its own."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-deploy" / "bin" / "python"
COUNT, BROKEN = 2000, 20
# As the workers' sitecustomize: whoever reads an image of 3x5 pixels is ended, as by the system when it has no memory left.
DEADLY = """
import os
import PIL.Image
open_image = PIL.Image.open
def deadly(file, *given, **options):
    image = open_image(file, *given, **options)
    if image.size == (3, 5):
        os._exit(1)
    return image
PIL.Image.open = deadly
"""
pytestmark = pytest.mark.long


@pytest.fixture(scope="module", autouse=True)
def ray_is_here() -> None:
    if not PYTHON.exists() or subprocess.run([PYTHON, "-c", "import ray.data"], capture_output=True, check=False).returncode:
        pytest.skip("missing here: Ray in .venv-deploy (make .venv-deploy/installed)")
    pytest.importorskip("pyarrow.dataset")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 JPEGs of some 1,500x1,500 pixels, so that killing has time: 40 files under names of their own. One in a hundred is broken."""
    folder, stored, chance = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("stored"), np.random.default_rng(0)
    for index in range(40):
        pixels = np.kron(chance.integers(0, 256, (14 + index % 3, 14, 3)), np.ones((100, 100, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(stored / f"{index}.jpg", quality=90)
        (stored / f"{index}-broken.jpg").write_bytes((stored / f"{index}.jpg").read_bytes()[:20_000])
    broken = set(chance.choice(COUNT, BROKEN, replace=False).tolist())
    for index in range(COUNT):
        os.link(stored / f"{index % 40}{'-broken' if index in broken else ''}.jpg", folder / f"{index:04d}.jpg")
    return folder


def command(bundle: Path, images: Path, out: Path, *more: str, python: Path = PYTHON) -> list[str]:
    given = [str(python), "-m", "edgeport_runtime", "map", str(bundle), str(images), "--out", str(out), "--ray", "local", "--precision", "fp32"]
    return [*given, *more]


def environment(*places: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*places, ROOT / "runtime"])), "PYTHONWARNINGS": "default"}


def rows_in(folder: Path) -> list[dict[str, Any]]:
    from pyarrow import dataset

    found: list[dict[str, Any]] = dataset.dataset(folder, format="parquet").to_table().to_pylist()
    return found


@pytest.fixture(scope="module")
def predicted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """By `predict`, in one process."""
    place = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    bundle = ROOT / "tests" / "fixtures" / "format1" / "classifier"
    call = [sys.executable, "-m", "edgeport_runtime", "predict", str(bundle), str(images), "--out", str(place), "--precision", "fp32"]
    assert subprocess.run(call, check=False, capture_output=True).returncode == 1
    rows = [json.loads(line) for line in place.read_text().splitlines()]
    answers = [{name: value for name, value in row.items() if name not in ("image", "model", "error")} or None for row in rows]
    return [{"path": row["image"], "answer": answer, "error": row.get("error")} for row, answer in zip(rows, answers, strict=True)]


def test_two_workers_on_two_processors_give_the_rows_of_predict(classifier: Path, images: Path, tmp_path: Path, predicted: list[dict[str, Any]]) -> None:
    done = subprocess.run(
        command(classifier, images, tmp_path / "out", "--workers", "2", "--json"), env=environment(), capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout) | {"first_error": ""} == {"images": COUNT, "errors": BROKEN, "first_error": ""}
    assert rows_in(tmp_path / "out") == predicted and sum(row["error"] is not None for row in predicted) == BROKEN


def parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def is_worker(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::MapWorker")
    except OSError:
        return False


def workers(driver: int) -> list[int]:
    """Those of this driver alone, which began a raylet that began them: other tests may run beside this one."""
    found = [int(place.name) for place in Path("/proc").glob("[0-9]*")]
    return [each for each in found if is_worker(each) and parent(parent(each)) == driver]


def until(what: Callable[[], Any], seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
    return found


def test_workers_and_drivers_are_killed_and_each_image_is_answered_once(
    classifier: Path, images: Path, tmp_path: Path, predicted: list[dict[str, Any]]
) -> None:
    out, chance = tmp_path / "out", random.Random(0)

    def parts() -> int:
        return len(list(out.glob("part-*.parquet")))

    whole = -(-COUNT // 32)
    for kill in ("worker", "driver", "worker", "driver"):
        driver = subprocess.Popen(command(classifier, images, out, "--resume"), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, goal = parts(), parts() + chance.randint(1, 6)
        until(lambda goal=goal: parts() >= goal)
        if kill == "worker":
            os.kill(chance.choice(until(lambda driver=driver: workers(driver.pid))), signal.SIGKILL)
            until(lambda goal=goal: parts() >= goal + 2)  # the job goes on
        assert driver.poll() is None and before < parts() < whole
        orphans = workers(driver.pid)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        until(lambda orphans=orphans: not any(map(is_worker, orphans)))
    done = subprocess.run(command(classifier, images, out, "--resume"), env=environment(), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 1 and f"{COUNT} images are answered" in done.stdout, done.stderr
    assert rows_in(out) == predicted  # each once, in order, and equal
    assert {path.name.split("-")[0] for path in out.iterdir()} == {"part", "_job.jsonl", "_begun"}


def test_an_image_that_ends_workers_is_an_error_in_its_row(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(40):
        Image.new("RGB", (3, 5) if index == 20 else (30, 20)).save(tmp_path / "in" / f"{index:02d}.png")
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    call = command(classifier, tmp_path / "in", tmp_path / "out", "--workers", "2", "--json")
    done = subprocess.run(call, env=environment(tmp_path), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["errors"] == 1 and "A worker died or was killed" in done.stderr  # what Ray tells of it is no part of the JSON
    rows = rows_in(tmp_path / "out")
    assert len(rows) == 40 and [Path(row["path"]).name for row in rows if row["error"]] == ["20.png"]
    assert "2 processes ended while they answered this image alone" in next(row["error"] for row in rows if row["error"])


WRONG = {
    ("--ray", "127.0.0.1:1"): "Ray at 127.0.0.1:1: it cannot be reached",
    ("--ray", "nowhere"): "Ray at nowhere: it cannot be reached",
    ("--ray", "local", "--workers", "1", "--threads", "99"): "a worker needs 99 processors on one node, and no node has that",
    ("--ray", "local", "--threads", "999"): "a worker needs 999 processors on one node, and no node has that",
}


@pytest.mark.parametrize("given", WRONG)
def test_a_cluster_that_cannot_do_it_is_one_sentence(given: tuple[str, ...], classifier: Path, images: Path, tmp_path: Path) -> None:
    done = subprocess.run(command(classifier, images, tmp_path / "out", *given), env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2 and WRONG[given] in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()  # the corrected command can be given without --resume


def test_a_worker_with_another_bundle_ends_the_job_in_a_sentence(classifier: Path, images: Path, tmp_path: Path) -> None:
    """As on a node whose copy is older: the driver reads the bundle first, and it is replaced before the workers do."""
    shutil.copytree(classifier, tmp_path / "bundle")
    change = (
        "import sys, json, pathlib, edgeport_runtime.mapping.cluster as c; connect = c.connect\n"
        f"place = pathlib.Path({str(tmp_path / 'bundle' / 'manifest.json')!r})\n"
        "c.connect = lambda pool: (place.write_text(place.read_text() + ' '), connect(pool))[1]\n"
        "from edgeport_runtime.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    call = command(tmp_path / "bundle", images, tmp_path / "out")
    done = subprocess.run([call[0], "-c", change, *call[3:]], env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2 and "this job is answered by" in done.stderr and "go on with --resume" in done.stderr, done.stdout + done.stderr
