"""The boundaries: the runtime never needs torch or onnx, dependencies point one way, and public names are real."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("runtime", "models", "export")
SOURCES = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]
BLOCKED = ("torch", "torchvision", "onnx", "onnxscript", "sklearn", "safetensors", "rich", "typer")
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED!r}))\n"
USE = """
from edgeport_runtime import load
model = load({bundle!r})
assert model.check()
import edgeport_runtime.cli, edgeport_runtime.doctor, edgeport_runtime.timing, edgeport_runtime.evaluation
loaded = [name for name in {blocked!r} if sys.modules.get(name) is not None]
assert not loaded, loaded
"""


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_runtime_loads_checks_and_runs_with_torch_blocked() -> None:
    done = python(BLOCK + USE.format(bundle=str(ROOT / "tests" / "fixtures" / "format1" / "classifier"), blocked=BLOCKED))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", BLOCKED)
def test_and_the_block_really_blocks(name: str) -> None:
    done = python(BLOCK + f"import {name}")
    assert done.returncode == 1 and name in done.stderr


def test_an_import_of_torch_in_the_runtime_would_be_noticed(tmp_path: Path) -> None:
    """The same check over a runtime with one forbidden line must fail, or it proves nothing."""
    package = tmp_path / "edgeport_runtime"
    package.mkdir()
    for path in (ROOT / "runtime" / "edgeport_runtime").glob("*.py"):
        text = path.read_text()
        (package / path.name).write_text(text if path.name != "images.py" else text + "\nimport torch\n")
    use = USE.format(bundle=str(ROOT / "tests" / "fixtures" / "format1" / "classifier"), blocked=BLOCKED)
    done = python(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + BLOCK + use)
    assert done.returncode == 1 and "torch" in done.stderr


@pytest.mark.parametrize("name", ["edgeport_runtime", "edgeport_models", "edgeport_export"])
def test_public_names_are_sorted_real_and_few(name: str) -> None:
    package = importlib.import_module(name)
    names = package.__all__
    assert names == sorted(names, key=lambda each: (not each.isupper(), each[0].islower(), each))
    assert all(hasattr(package, each) for each in names) and len(names) <= 25
    public = {each for each in vars(package) if not each.startswith("_") and getattr(vars(package)[each], "__module__", "").startswith("edgeport")}
    assert public <= set(names), public - set(names)


@pytest.mark.parametrize("name", ["edgeport_runtime", "edgeport_models", "edgeport_export"])
def test_no_public_name_is_the_name_of_a_module(name: str) -> None:
    """Importing a module binds it in the package, over a function of the same name. `check` and `compare` are bound again by the runtime's own imports."""
    package = importlib.import_module(name)
    for path in sorted((ROOT / name.split("_")[1] / name).glob("[a-z]*.py")):
        importlib.import_module(f"{name}.{path.stem}")
    assert not [each for each in package.__all__ if isinstance(getattr(package, each), ModuleType)]


def test_everything_public_has_a_docstring() -> None:
    bare = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            bare.append(f"{path.relative_to(ROOT)}")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node) and node.name != "main":
                bare.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not bare, bare


WRONG_IMPORTS = {
    "import torch": "runtime/edgeport_runtime/images.py",
    "import edgeport_export": "models/edgeport_models/layers.py",
    "from edgeport_models import network": "export/edgeport_export/quantization/qdq.py",
    "from edgeport_export.cli import app": "export/edgeport_export/pipeline.py",
    "from edgeport_export.tracing import exporter": "export/edgeport_export/network/wrapper.py",
    "from edgeport_export.quantization import plan": "export/edgeport_export/bundle/writer.py",  # neighbors
    "import nobody": "export/edgeport_export/unlisted.py",  # a module that stands in no layer
}


@pytest.mark.parametrize(("forbidden", "where"), WRONG_IMPORTS.items())
def test_a_wrong_import_would_be_noticed(forbidden: str, where: str, tmp_path: Path) -> None:
    """import-linter over a copy of the packages with one wrong import."""
    for path in [*SOURCES, ROOT / "pyproject.toml"]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    with (tmp_path / where).open("a") as file:
        file.write(f"\n{forbidden}\n")
    packages = [str(tmp_path / part) for part in PARTS]
    code = f"import sys; sys.path[:0] = {packages!r}; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1 and ("BROKEN" in done.stdout or "unlisted" in done.stdout), done.stdout + done.stderr
