"""The README keeps its word: its Python runs, its commands exist, its map is the layout, its links lead somewhere."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgeport_export.cli.app import main as edgeport
from edgeport_export.network.preflight import preflight
from edgeport_runtime import Contract, ContractError
from edgeport_runtime.cli import build_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
STORED = ROOT / "tests" / "fixtures" / "format1"
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.S)
SHELL = "\n".join(re.findall(r"```\n(.*?)```", README, flags=re.S))


@pytest.mark.parametrize("code", PYTHON, ids=["runtime", "plain onnxruntime"])
def test_its_python_runs(code: str, tmp_path: Path) -> None:
    """With small stored bundles and made-up images in the places that the demo fills."""
    shutil.copytree(STORED / "classifier", tmp_path / "demo/bundles/resnet18")
    shutil.copytree(STORED / "generator", tmp_path / "demo/bundles/generator")
    for path in re.findall(r'"(demo/held_out/[^"]+\.png)"', code):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 64, 3), 220, np.uint8)).save(tmp_path / path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_its_contract_is_one_that_a_network_keeps() -> None:
    """The JSON is read, and a network of that shape passes under it."""
    (text,) = re.findall(r"```json\n(.*?)```", README, flags=re.S)

    class Scored(nn.Module):
        def forward(self, signal: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.stack([(signal * mask[:, None]).mean((1, 2)), signal.amax((1, 2))], 1)

    contract = Contract.from_json(text)
    preflight(Scored(), contract)
    with pytest.raises(ContractError, match="does not say what the network gives"):
        preflight(Scored(), replace(contract, outputs=(replace(contract.outputs[0], shape=("batch", 3)),)))


def test_its_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    edgeport(["--help"])
    helped = capsys.readouterr().out
    for command in set(re.findall(r"^edgeport (\w+)", SHELL, flags=re.M)):
        assert command in helped
    commands = build_parser().format_help()
    for command in set(re.findall(r"^edgeport-run (\w+)", SHELL, flags=re.M)):
        assert command in commands
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M)
    assert set(re.findall(r"^make (\w+)", SHELL, flags=re.M)) <= set(targets)


def names_on_the_map(text: str) -> set[str]:
    """Modules and packages, as the tree under "Layout" lists them: everything before the words that explain a line."""
    tree = re.search(r"## Layout\n.*?```\n(.*?)```", text, flags=re.S)
    assert tree is not None
    return {name.strip("/") for line in tree[1].splitlines() for name in re.split(r" {3,}", line.strip(), maxsplit=1)[0].split()}


def names_of_modules() -> set[str]:
    """The top level of each package, and the modules of the runtime and of the networks."""
    names = {path.stem for part in ("runtime", "models") for path in (ROOT / part / f"edgeport_{part}").glob("*.py")}
    names |= {path.stem for path in (ROOT / "export" / "edgeport_export").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    return {name for name in names if not name.startswith("__")}


def test_its_map_is_the_layout() -> None:
    the_map = names_on_the_map(README)
    parts = {"runtime/edgeport_runtime", "models/edgeport_models", "export/edgeport_export", "tests"}
    assert names_of_modules() == the_map - parts, {"missing": names_of_modules() - the_map, "gone": the_map - parts - names_of_modules()}


@pytest.mark.parametrize("change", [lambda text: text.replace("    pipeline", "    pipework"), lambda text: text.replace("    options", "")])
def test_a_map_that_is_wrong_would_be_found(change: Callable[[str], str]) -> None:
    assert names_of_modules() - names_on_the_map(change(README))


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links and all(link.startswith("https://") or (ROOT / link).exists() for link in links), links
    assert all((ROOT / name).is_file() for name in re.findall(r"\b([A-Z]+\.md)\b", README))
