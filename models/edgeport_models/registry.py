"""The networks edgeport comes with: name -> how it is built, what its contract is, what it is trained on and how."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from edgeport_runtime import Contract, DetectionHead, Output, Pixels, Range
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification, image_to_image, pixel_input
from edgeport_runtime.tasks import TruthKind

from .attention import AttentionNet
from .cnn import CNN
from .errors import NetworkError
from .generator import Generator
from .pyramid import STEP_PX, Detector, Segmenter
from .resnet import ResNet18

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained. `data`: the default data set; `learning_rate`: the peak of a one-cycle schedule."""

    data: str
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float = 5e-4
    momentum: float = 0.9
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Network:
    """One entry of the registry. `contract` takes the labels and a side in pixels.

    `arguments`: always given to `build`. `untrained`: arguments that keep `build` from loading pretrained weights. `truth`: what it learns of each image.
    """

    name: str
    build: Callable[..., nn.Module]
    contract: Callable[[tuple[str, ...], int], Contract]
    side_px: int
    recipe: Recipe
    arguments: Mapping[str, Any] = field(default_factory=dict)
    untrained: Mapping[str, Any] = field(default_factory=dict)

    truth: TruthKind = "label"

    @property
    def has_classes(self) -> bool:
        """Whether it is built for a number of classes; an image-to-image network is not."""
        return self.truth != "image"

    @property
    def parameters(self) -> set[str]:
        """Names of the arguments that `build` takes."""
        return set(inspect.signature(self.build).parameters)

    def make(self, arguments: Mapping[str, Any]) -> nn.Module:
        """Build the network from those of `arguments` that it knows. Raises NetworkError if a value does not fit."""
        known = {name: value for name, value in {**self.arguments, **arguments}.items() if name in self.parameters}
        try:
            return self.build(**known)
        except (TypeError, ValueError) as error:
            raise NetworkError(f"{self.name} cannot be built from {known}: {error}") from error


def _classifier(smallest_px: int, largest_px: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[tuple[str, ...], int], Contract]:
    def contract(labels: tuple[str, ...], side_px: int) -> Contract:
        pixels = Pixels(height=side_px, width=side_px, mean=mean, std=std)
        return classification(pixels, labels, image_axes(smallest_px=smallest_px, largest_px=largest_px))

    return contract


def _generator(labels: tuple[str, ...], side_px: int) -> Contract:
    pixels = Pixels(height=side_px, width=side_px, resize="keep", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return image_to_image(pixels, image_axes(smallest_px=Generator.SMALLEST_PX, largest_batch=32))


def _stepped_axes() -> dict[str, Range]:
    side = Range(low=STEP_PX, high=512, step=STEP_PX)
    return {"batch": Range(low=1, high=32), "height": side, "width": side}


def _detector(labels: tuple[str, ...], side_px: int) -> Contract:
    pixels = Pixels(height=side_px, width=side_px, resize="letterbox", mean=HALF, std=HALF)
    outputs = (
        Output(name="boxes", dtype="float32", shape=("batch", "?", 4), kind="boxes"),
        Output(name="scores", dtype="float32", shape=("batch", "?", len(labels)), kind="scores"),
        Output(name="points", dtype="float32", shape=("batch", "?", 2), kind="points"),
    )
    head = DetectionHead(box_format="distances", candidates=300)
    return Contract(task="detection", inputs=(pixel_input(pixels),), outputs=outputs, axes=_stepped_axes(), labels=labels, detection=head)


def _segmenter(labels: tuple[str, ...], side_px: int) -> Contract:
    pixels = Pixels(height=side_px, width=side_px, resize="letterbox", mean=HALF, std=HALF)
    scores = Output(name="scores", dtype="float32", shape=("batch", len(labels), "height", "width"), kind="tensor")
    return Contract(task="segmentation", inputs=(pixel_input(pixels),), outputs=(scores,), axes=_stepped_axes(), labels=labels)


HALF = (0.5, 0.5, 0.5)
NETWORKS = {
    network.name: network
    for network in (
        Network(
            name="cnn",
            build=CNN,
            contract=_classifier(CNN.SMALLEST_PX, 1024, HALF, HALF),
            side_px=32,
            recipe=Recipe(data="digits", epochs=20, batch=32, learning_rate=0.1),
        ),
        Network(
            name="cnn-separable",
            build=CNN,
            contract=_classifier(CNN.SMALLEST_PX, 1024, HALF, HALF),
            side_px=32,
            recipe=Recipe(data="digits", epochs=40, batch=32, learning_rate=0.05),
            arguments={"separable": True},
        ),
        Network(
            name="resnet18",
            build=ResNet18,
            contract=_classifier(ResNet18.SMALLEST_PX, 1024, IMAGENET_MEAN, IMAGENET_STD),
            side_px=64,
            recipe=Recipe(data="digits", epochs=6, batch=64, learning_rate=0.05),
            untrained={"weights": "none"},
        ),
        Network(
            name="attention",
            build=AttentionNet,
            # 256 px are 4,096 positions: 64 MiB of attention weights an image, 16 times that at 512 px
            contract=_classifier(AttentionNet.SMALLEST_PX, 256, HALF, HALF),
            side_px=64,
            recipe=Recipe(data="digits", epochs=10, batch=32, learning_rate=0.1),
        ),
        Network(
            name="generator",
            build=Generator,
            contract=_generator,
            side_px=128,
            recipe=Recipe(data="photos", epochs=8, batch=16, learning_rate=3e-3, weight_decay=0.0),
            truth="image",
        ),
        Network(
            name="detector",
            build=Detector,
            contract=_detector,
            side_px=128,
            recipe=Recipe(data="scenes", epochs=8, batch=32, learning_rate=5e-3, weight_decay=1e-2),
            truth="boxes",
        ),
        Network(
            name="segmenter",
            build=Segmenter,
            contract=_segmenter,
            side_px=128,
            recipe=Recipe(data="scenes", epochs=3, batch=32, learning_rate=4e-3, weight_decay=1e-2),
            truth="mask",
        ),
    )
}


def network(name: str) -> Network:
    """Look a network up. Raises NetworkError listing the names."""
    if name not in NETWORKS:
        raise NetworkError(f"expected one of {', '.join(NETWORKS)}, got {name!r}")
    return NETWORKS[name]
