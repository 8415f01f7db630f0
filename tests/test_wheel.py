"""The device wheel, built and used as a stranger would: small, torch-free, and able to predict."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import edgeport_runtime

ROOT = Path(__file__).parents[1]
STORED = ROOT / "tests" / "fixtures" / "format1"
# 90 kB were asked for; a batcher that survives signals and forks, answers for five more kinds of networks, and checks of what strangers send took it beyond
LARGEST_WHEEL = 160_000
LARGEST_TREE = 200_000_000
DEPENDENCIES = ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime", "flatbuffers", "packaging", "google", "sympy", "mpmath", "coloredlogs")


def build(project: Path, out: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(project)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT / "runtime", tmp_path_factory.mktemp("device"))


def test_the_wheel_is_small_and_holds_the_runtime_alone(wheel: Path) -> None:
    assert wheel.stat().st_size < LARGEST_WHEEL
    names = zipfile.ZipFile(wheel).namelist()
    part = ROOT / "runtime"
    modules = {str(path.relative_to(part)) for path in (part / "edgeport_runtime").rglob("*") if path.suffix == ".py" or path.name == "py.typed"}
    assert {name for name in names if not name.startswith(f"edgeport_runtime-{edgeport_runtime.__version__}.dist-info/")} == modules


def test_both_wheels_carry_the_license(wheel: Path, tmp_path: Path) -> None:
    for path in (wheel, build(ROOT, tmp_path)):
        with zipfile.ZipFile(path) as opened:
            (name,) = [each for each in opened.namelist() if each.endswith("/licenses/LICENSE")]
            assert opened.read(name).decode() == (ROOT / "LICENSE").read_text() and "Apache License" in (ROOT / "LICENSE").read_text()
            (metadata,) = [opened.read(each).decode() for each in opened.namelist() if each.endswith(".dist-info/METADATA")]
        assert message_from_string(metadata)["License-Expression"] == "Apache-2.0"


def test_its_needs_are_few_and_neither_onnxruntime_is_forced(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        metadata = message_from_string(opened.read(f"edgeport_runtime-{edgeport_runtime.__version__}.dist-info/METADATA").decode())
    needs = metadata.get_all("Requires-Dist") or []
    assert sorted(need.split(">")[0] for need in needs if "extra" not in need) == ["numpy", "pillow"]
    assert any(need.startswith("onnxruntime>") and "'cpu'" in need for need in needs)
    assert any(need.startswith("onnxruntime-gpu[cuda,cudnn]>") and "'gpu'" in need for need in needs)


def test_it_loads_checks_and_predicts_where_torch_cannot_be_imported(wheel: Path, tmp_path: Path) -> None:
    """An isolated interpreter that sees the unpacked wheel and the runtime's own dependencies, and nothing else."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)
    installed = Path(edgeport_runtime.device.onnxruntime().__file__).parents[1]
    for name in DEPENDENCIES:
        if (installed / name).exists():
            (site / name).symlink_to(installed / name)
    for info in installed.glob("*.dist-info"):
        if info.name.split("-")[0] in ("numpy", "pillow", "onnxruntime"):
            (site / info.name).symlink_to(info)
    code = f"""
import sys; sys.path.insert(0, {str(site)!r})
for name in ("torch", "onnx", "sklearn", "edgeport_export", "edgeport_models"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{{name}} can be imported here, so this test proves nothing")
import edgeport_runtime, numpy
assert edgeport_runtime.__file__.startswith({str(site)!r})
for precision in ("fp32", "int8"):
    model = edgeport_runtime.load({str(STORED / "classifier")!r}, precision=precision)
    assert model.check(), model.check()
    assert model(numpy.full((16, 16, 3), 220, numpy.uint8)).label == "bright"
    image = edgeport_runtime.load({str(STORED / "generator")!r}, precision=precision)(numpy.zeros((9, 21, 3), numpy.uint8))
    assert image.size == (21, 9)
print("predicted")
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0 and done.stdout.strip() == "predicted", done.stderr
    tree = sum(path.stat().st_size for name in site.iterdir() for path in name.resolve().rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert tree < LARGEST_TREE


def test_host_and_device_have_one_version(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    exact = f"edgeport-runtime=={edgeport_runtime.__version__}"
    assert exact in project["project"]["dependencies"]
    for extra in ("cpu", "gpu"):
        assert project["project"]["optional-dependencies"][extra] == [f"edgeport-runtime[{extra}]=={edgeport_runtime.__version__}"]
    wheel = build(ROOT, tmp_path)
    assert wheel.name == f"edgeport-{edgeport_runtime.__version__}-py3-none-any.whl"
    packages = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()} - {f"edgeport-{edgeport_runtime.__version__}.dist-info"}
    assert packages == {"edgeport_export", "edgeport_models"}


@pytest.mark.parametrize("project", [ROOT, ROOT / "runtime"], ids=["host", "runtime"])
def test_wheel_and_sdist_have_the_same_bytes_twice(project: Path, tmp_path: Path) -> None:
    """Whenever, wherever and with whatever permissions they are built."""
    found = []
    for number, (mask, time_s) in enumerate(((0o022, 10**9), (0o002, 1.5 * 10**9))):
        copied = tmp_path / ("a" * (number + 1)) / "project"
        copied.mkdir(parents=True)
        for name in ("pyproject.toml", "README.md", "LICENSE", "runtime", "models", "export", "edgeport_runtime"):
            if (project / name).is_dir():
                shutil.copytree(project / name, copied / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (project / name).exists():
                shutil.copy(project / name, copied / name)
        for path in copied.rglob("*"):
            path.chmod(0o777 & ~mask if path.is_dir() else 0o666 & ~mask)
            os.utime(path, (time_s, time_s))
        out = tmp_path / f"out{number}"
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copied)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()})
    assert found[0] == found[1] and sorted(Path(name).suffix for name in found[0]) == [".gz", ".whl"]


@pytest.mark.long
def test_the_bill_of_materials_lists_what_the_runtime_needs_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "sbom.py"), str(tmp_path), "runtime"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (path,) = tmp_path.glob("*.whl"), tmp_path.glob("*.cdx.json")
    bill = json.loads(path.read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}]
    listed = {each["name"].lower(): each["version"] for each in bill["components"]}
    assert {"numpy", "pillow", "onnxruntime"} <= set(listed) and not {"torch", "onnx", "pytest", "edgeport"} & set(listed)
    assert all(version == importlib.metadata.version(name) for name, version in listed.items())
    assert {each["ref"] for each in bill["dependencies"]} == {"root-component", *(each["bom-ref"] for each in bill["components"])}
