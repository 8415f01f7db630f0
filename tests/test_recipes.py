"""Each recipe of docs/recipes.md, as it stands there: its commands one after the other, in a folder that holds what the recipe names."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

from edgeport_export.cli.app import main as edgeport
from edgeport_runtime import Bundle
from edgeport_runtime.cli import main as edgeport_run

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.S | re.M))
pytestmark = pytest.mark.long


def commands(section: str) -> list[str]:
    return [line for block in re.findall(r"```sh\n(.*?)```", SECTIONS[section], flags=re.S) for line in block.splitlines()]


def photographs(side: int) -> list[Image.Image]:
    """Parts of the photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_images

    generator, found = np.random.default_rng(0), []
    for photo in load_sample_images().images * 10:
        top, left = (int(generator.integers(0, size - side)) for size in photo.shape[:2])
        found.append(Image.fromarray(photo[top : top + side, left : left + side]))
    return found


def images(folder: Path) -> None:
    (folder / "images").mkdir()
    for index, photo in enumerate(photographs(240)):
        photo.save(folder / "images" / f"{index}.png")


def pairs(folder: Path) -> None:
    for part in ("input", "target"):
        (folder / "pairs" / part).mkdir(parents=True)
    for index, photo in enumerate(photographs(96)):
        photo.save(folder / "pairs" / "target" / f"{index}.png")
        photo.resize((48, 48), Image.Resampling.BICUBIC).save(folder / "pairs" / "input" / f"{index}.png")


def classifier_of_timm(name: str, file: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        torch.manual_seed(0)
        torch.save(timm.create_model(name, pretrained=False).state_dict(), folder / file)
        images(folder)

    return prepare


def segmentation(folder: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    torch.save(network.state_dict(), folder / "lraspp.pth")
    images(folder)


def detection(folder: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    torch.save(network.state_dict(), folder / "ssdlite.pth")
    images(folder)


def super_resolution(folder: Path) -> None:
    (shown,) = re.findall(r'```python title="upscale.py"\n(.*?)```', PAGE, flags=re.S)
    (folder / "upscale.py").write_text(shown)
    scope: dict[str, Callable[[], torch.nn.Module]] = {}
    exec(shown, scope)
    torch.manual_seed(0)
    torch.save(scope["network"]().state_dict(), folder / "upscale.pth")
    pairs(folder)


RECIPES = {
    "A classifier of timm": classifier_of_timm("mobilenetv4_conv_small", "mobilenet.pth"),
    "A vision transformer of timm": classifier_of_timm("vit_tiny_patch16_224", "vit.pth"),
    "Segmentation with torchvision": segmentation,
    "Detection with torchvision": detection,
    "Super-resolution, with pairs": super_resolution,
}


def run(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command of a recipe prints, once it succeeded."""
    program, *arguments = command.split()
    code = {"edgeport": edgeport, "edgeport-run": edgeport_run}[program](arguments)
    told = capsys.readouterr()
    assert code == 0, f"{command}\n{told.err}"
    return told.out


@pytest.mark.parametrize("section", RECIPES)
def test_a_recipe_gives_a_checked_bundle(
    section: str, fix_latencies: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """How fast variants are is given, and not measured, as in all tests."""
    fix_latencies(monkeypatch)
    monkeypatch.chdir(tmp_path)
    RECIPES[section](tmp_path)
    listed = commands(section)
    assert len(listed) >= 2
    for command in listed:
        printed = run(command, capsys)
        assert "golden outputs agree" in printed or " check " not in command
    (folder,) = (tmp_path / "bundles").iterdir()
    evidence = Bundle(folder).evidence()
    assert evidence["images"]["calibration"] > 0 and evidence["parity"]["fp32"]["passed"]
    if section == "Super-resolution, with pairs":
        assert evidence["quality"]["metric"] == "psnr_db" and evidence["quality"]["count"] > 4
        photographs(200)[0].save(tmp_path / "photo.jpg")
        tiled = re.findall(r"`(edgeport-run predict [^`]*)`", SECTIONS[section])[0]
        run(tiled, capsys)
        with Image.open(tmp_path / "large" / "photo.png") as answer:
            assert answer.size == (400, 400)


def test_every_recipe_has_a_test() -> None:
    assert set(SECTIONS) == {*RECIPES, "A network of your own, in Python"}  # the last one runs with the pages' Python
