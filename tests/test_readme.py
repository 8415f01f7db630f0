"""The README keeps its word: its Python runs, its commands exist, its map is the house."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgeport_export.cli import main as edgeport
from edgeport_export.preflight import preflight
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
    (said,) = re.findall(r"```json\n(.*?)```", README, flags=re.S)

    class Scored(nn.Module):
        def forward(self, signal: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.stack([(signal * mask[:, None]).mean((1, 2)), signal.amax((1, 2))], 1)

    contract = Contract.from_json(said)
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


def test_its_map_is_the_house() -> None:
    the_map = README.split("## The house")[1]
    for package in ("runtime/edgeport_runtime", "models/edgeport_models", "export/edgeport_export"):
        rooms = {path.stem for path in (ROOT / package).glob("*.py") if not path.stem.startswith("__")}
        assert package in the_map and rooms <= set(re.findall(r"[\w-]+", the_map)), rooms - set(re.findall(r"[\w-]+", the_map))


def test_its_links_lead_somewhere() -> None:
    for name in re.findall(r"\b([A-Z]+\.md)\b", README):
        assert (ROOT / name).is_file()
