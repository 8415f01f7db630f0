"""What happens when the machine is against it: full disks, folders that may not be read or written, too little memory, another language's numbers, kills.

Mounts and other users need root, and Linux; elsewhere these tests are skipped.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgeport_export import ExportOptions, OutputError, export_bundle
from edgeport_runtime import Contract, Pixels
from edgeport_runtime.axes import image_axes
from edgeport_runtime.cli import main
from edgeport_runtime.contract import classification

ROOT = Path(__file__).parents[1]
STORED = ROOT / "tests" / "fixtures" / "format1"
KILLS = [sys.executable, str(ROOT / "tests" / "bench" / "kills.py")]
NOBODY = 65534
as_root = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts, and becoming another user, need root on Linux")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((20, 30, 3), 225, np.uint8)).save(path)
    return path


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Make a disk of so many kB at a place."""
    made: list[Path] = []

    def mount(kilobytes: int, *options: str) -> Path:
        place = tmp_path / f"disk{len(made)}"
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([f"size={kilobytes}k", *options]), "tmpfs", str(place)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"a disk cannot be mounted here: {done.stderr.decode().strip()}")
        made.append(place)
        return place

    yield mount
    for place in made:
        subprocess.run(["umount", str(place)], check=False)


@contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def small_network() -> tuple[nn.Module, Contract]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3))
    axes = image_axes(smallest_px=8, largest_px=16, largest_batch=2)
    return network.eval(), classification(Pixels(height=8, width=8), ("a", "b", "c"), axes)


@as_root
@pytest.mark.parametrize("existing", [False, True])
def test_an_export_to_a_full_disk_says_so_and_leaves_what_was_there(existing: bool, mounted: Callable[..., Path]) -> None:
    disk = mounted(40)
    if existing:
        (disk / "bundle").mkdir()
        (disk / "bundle" / "manifest.json").write_text("{}")
    before = sorted(disk.rglob("*"))
    with pytest.raises(OutputError, match=r"bundle: the bundle cannot be written \(No space left on device\); nothing was left there"):
        export_bundle(*small_network(), disk / "bundle", options=ExportOptions(precisions=("fp32",)), force=True)
    assert sorted(disk.rglob("*")) == before


@as_root
def test_a_full_disk_for_temporary_files_is_one_sentence(mounted: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(mounted(16)))
    monkeypatch.setattr("tempfile.tempdir", None)
    images = list(np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8))
    with pytest.raises(OutputError, match=r"no bundle was written, because a disk is full \(No space left on device\); free some space there, or in .*disk0"):
        export_bundle(*small_network(), tmp_path / "bundle", calibration=images)
    assert not (tmp_path / "bundle").exists() and not list(Path(os.environ["TMPDIR"]).iterdir())


@as_root
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_rows_on_a_full_disk_stop_with_one_sentence_and_go_on_later(
    form: str, mounted: Callable[..., Path], photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk, many = mounted(8), tmp_path / "many"
    many.mkdir()
    for index in range(60):
        shutil.copy(photo, many / f"{index:02}{'x' * 100}.png")
    out = disk / f"rows.{form}"
    command = ["predict", str(STORED / "classifier"), str(many), "--out", str(out)]
    assert main(command) == 2
    assert f"{out}: the results cannot be written (No space left on device); free some space there, and go on with --resume" in capsys.readouterr().err
    subprocess.run(["mount", "-o", "remount,size=1000k", str(disk)], check=True)
    assert main([*command, "--resume"]) == 0
    assert len([line for line in out.read_text().splitlines() if ".png" in line]) == 60


@as_root
def test_an_output_on_a_full_disk_is_one_sentence(mounted: Callable[..., Path]) -> None:
    disk = mounted(4)
    (disk / "full").write_bytes(bytes(4096))
    for command in (["info"], ["check"], ["predict", "nothing.png"]):
        with (disk / "out").open("w") as out:
            called = [sys.executable, "-m", "edgeport_runtime", command[0], str(STORED / "classifier"), *command[1:]]
            done = subprocess.run(called, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("edgeport-run: ")


@as_root
def test_a_read_only_place_is_known_before_anything_is_done(mounted: Callable[..., Path], photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = mounted(100)
    shutil.copytree(STORED / "classifier", disk / "bundle")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OutputError, match=r"disk0 cannot be written to; give another folder"):
        export_bundle(*small_network(), disk / "new" / "bundle", options=ExportOptions(precisions=("fp32",)))
    assert main(["predict", str(STORED / "classifier"), str(photo), "--out", str(disk / "rows.csv")]) == 2
    assert "the results cannot be written (Read-only file system); name another file with --out" in capsys.readouterr().err
    assert main(["check", str(disk / "bundle"), "--precision", "fp32"]) == 0  # reading is all it takes


@as_root
def test_what_may_not_be_read_is_named(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    shutil.copytree(STORED / "classifier", tmp_path / "bundle")
    bundle = str(tmp_path / "bundle")
    for path, command, message in (
        (photo, ["predict", bundle, str(photo)], "photo.png: the image cannot be read (Permission denied)"),
        (tmp_path / "bundle" / "model.onnx", ["check", bundle], "lists this file, but it cannot be read (Permission denied)"),
        (tmp_path / "bundle" / "manifest.json", ["info", bundle], "manifest.json: the manifest cannot be read (Permission denied)"),
    ):
        path.chmod(0)
        with as_nobody():
            assert main(command) == 2
        told = capsys.readouterr()
        assert message in told.err + told.out
        path.chmod(0o644)
    tmp_path.chmod(0o755)
    with as_nobody(), pytest.raises(OutputError, match="cannot be written to; give another folder"):
        export_bundle(*small_network(), tmp_path / "new", options=ExportOptions(precisions=("fp32",)))


OUT_OF_MEMORY = """
import resource, sys
from dataclasses import replace
import numpy as np
from edgeport_runtime import Bundle, DeviceError, Range, SessionOptions
from edgeport_runtime.engine import Engine
bundle = Bundle(sys.argv[1])
free = Range(low=1, high=100_000)
contract = replace(bundle.manifest.contract, axes={"batch": free, "height": free, "width": free})
engine = Engine(bundle.read(bundle.variant("fp32")), contract, SessionOptions(threads=1))
small, large = (np.full((1, side, side, 3), 77, np.uint8) for side in (16, 4000))
before = engine.run({"pixels": small})["image"]
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for round in range(3):
    resource.setrlimit(resource.RLIMIT_AS, (held + 300_000_000, resource.RLIM_INFINITY))
    try:
        engine.run({"pixels": large})
    except DeviceError as error:
        print(str(error)[:300])
    else:
        raise SystemExit("there was enough memory")
    assert np.array_equal(engine.run({"pixels": small})["image"], before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_a_run_out_of_memory_leaves_the_model_usable() -> None:
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY, str(STORED / "generator")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("failed on cpu at {'pixels': (1, 4000, 4000, 3)}") == 3


DECIMAL_COMMA = """
import json, locale, sys
locale.setlocale(locale.LC_ALL, "")
assert locale.localeconv()["decimal_point"] == sys.argv[1], locale.localeconv()
from pathlib import Path
import numpy as np
from edgeport_runtime import Bundle, load
from edgeport_runtime.cli import main
model = load(sys.argv[2], precision="fp32")
assert model.check()
pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
print(model.raw(pixels)["logits"].tobytes().hex())
main(["predict", sys.argv[2], sys.argv[3], "--format", "csv", "--precision", "fp32"])
main(["predict", sys.argv[2], sys.argv[3], "--json", "--precision", "fp32"])
main(["info", sys.argv[2]])
import torch
from torch import nn
from edgeport_export import ExportOptions, export_bundle
from edgeport_runtime import Pixels
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
axes = image_axes(smallest_px=8, largest_px=16, largest_batch=2)
contract = classification(Pixels(height=8, width=8, mean=(0.5,) * 3, std=(0.25,) * 3), ("a", "b", "c"), axes)
bundle = export_bundle(network, contract, sys.argv[4], name="n", options=ExportOptions(precisions=("fp32",)))
print(bundle.sha256)
"""


def test_a_decimal_comma_changes_no_number(photo: Path, tmp_path: Path) -> None:
    """What is printed, computed and exported is the same, to the last byte."""
    made = shutil.which("localedef") and subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")], capture_output=True, check=False
    )
    if not (tmp_path / "de_DE.UTF-8").exists():
        pytest.skip(f"no German locale can be made here: {made and made.stderr.decode().strip()}")
    told = []
    for comma, name in ((".", "C.UTF-8"), (",", "de_DE.UTF-8")):
        environment = {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": name} if comma == "," else {**os.environ, "LC_ALL": name}
        command = [sys.executable, "-c", DECIMAL_COMMA, comma, str(STORED / "classifier"), str(photo), str(tmp_path / f"bundle{comma}")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
    assert told[0] == told[1] and told[0].count("\n") > 10


@pytest.mark.skipif(sys.platform != "linux", reason="two folders are exchanged in one step on Linux")
def test_kills_while_a_bundle_is_written_tear_none() -> None:
    done = subprocess.run([*KILLS, "--kills", "100", "--writing"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 torn; " in done.stdout and " 0 failed; left: nothing" in done.stdout


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="two folders are exchanged in one step on Linux")
def test_kills_of_whole_exports_tear_none() -> None:
    done = subprocess.run([*KILLS, "--kills", "10"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
