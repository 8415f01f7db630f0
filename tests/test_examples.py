"""Every script in examples/ runs as it stands, on small data. How fast variants are is given, and not measured, as in all tests."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
LONG = pytest.mark.long


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of the photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index, photo in enumerate(load_sample_images().images * 8):
        top, left = (int(generator.integers(0, size - 260)) for size in photo.shape[:2])
        Image.fromarray(photo[top : top + 260, left : left + 260]).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def run(fix_latencies: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a script with arguments, and gives what it printed."""
    fix_latencies(monkeypatch)
    monkeypatch.chdir(ROOT)

    def printed(name: str, *arguments: object) -> str:
        path = str(ROOT / "examples" / name)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return printed


@LONG
def test_own_network(run: Callable[..., str], tmp_path: Path) -> None:
    printed = run("own_network.py", "--out", tmp_path / "b", "--epochs", 2)
    assert "golden outputs agree with PyTorch's stored outputs" in printed and "auto takes" in printed and "Prediction(label=" in printed


@LONG
def test_torchvision_checkpoint(run: Callable[..., str], tmp_path: Path, photos: Path) -> None:
    import torch
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v3_small(num_classes=10).state_dict(), tmp_path / "mine.pth")
    printed = run("torchvision_checkpoint.py", "--images", photos, "--out", tmp_path / "b", "--weights", tmp_path / "mine.pth", "--classes", 10)
    assert "golden outputs agree with PyTorch's stored outputs" in printed and printed.count("Prediction(") == 3


@LONG
def test_timm_model(run: Callable[..., str], tmp_path: Path, photos: Path) -> None:
    printed = run("timm_model.py", "--model", "test_resnet", "--images", photos, "--out", tmp_path / "b", "--random")
    assert "golden outputs agree with PyTorch's stored outputs" in printed and "auto takes" in printed


@LONG
def test_segmentation(run: Callable[..., str], tmp_path: Path, photos: Path) -> None:
    printed = run("segmentation.py", "--images", photos, "--out", tmp_path / "b", "--random")
    assert "golden outputs agree with PyTorch's stored outputs" in printed and (tmp_path / "b-overlay.png").exists()
    with Image.open(tmp_path / "b.png") as mask:
        assert mask.mode == "P" and mask.size == (260, 260)


@LONG
def test_detection(run: Callable[..., str], tmp_path: Path, photos: Path) -> None:
    printed = run("detection.py", "--images", photos, "--out", tmp_path / "b", "--random")
    assert "golden outputs agree with PyTorch's stored outputs" in printed and len(list(tmp_path.glob("b-*.png"))) == 3


@LONG
def test_scenes(run: Callable[..., str], tmp_path: Path) -> None:
    printed = run("scenes.py", "--network", "segmenter", "--out", tmp_path / "b", "--epochs", 1)
    assert "mean IoU" in printed and len(list(tmp_path.glob("b-*.png"))) == 3


@LONG
def test_embedding(run: Callable[..., str], tmp_path: Path, photos: Path) -> None:
    printed = run("embedding.py", "--images", photos, "--out", tmp_path / "b", "--random")
    assert "golden outputs agree with PyTorch's stored outputs" in printed and "of 576 features" in printed


@LONG
def test_maps_and_points(run: Callable[..., str], tmp_path: Path) -> None:
    printed = run("maps_and_points.py", "--out", tmp_path, "--scenes", 128)
    assert "distances: " in printed and "px high" in printed and all((tmp_path / f"{name}.png").exists() for name in ("distances", "place"))


@LONG
def test_generator(run: Callable[..., str], tmp_path: Path) -> None:
    printed = run("generator.py", "--out", tmp_path / "b", "--epochs", 1)
    assert "fp32 " in printed and "dB PSNR" in printed and "128x128 pixels" in printed


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_every_script_says_what_it_does_and_has_a_test(path: Path) -> None:
    helped = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, check=True).stdout
    assert path.stem in helped and f"def test_{path.stem}(" in Path(__file__).read_text()
