"""The contract of a user's own network: from a few facts about its input, and one run that shows its outputs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from edgeport_runtime import Contract, ContractError, Output, Pixels, Range
from edgeport_runtime.contract import Task, pixel_input

from .errors import ExportError, NetworkFailure
from .wrap import first_line, flatten

PIXEL_AXES = ("batch", "height", "width")
DEFAULT_BATCH = Range(low=1, high=64)
FILTERS = {mode: mode.value for mode in (InterpolationMode.NEAREST, InterpolationMode.BILINEAR, InterpolationMode.BICUBIC, InterpolationMode.LANCZOS)}


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """What a user says of a network with one image input.

    `axes`: ranges of those of batch, height and width that are dynamic; the others are fixed, the batch at 1.
    `output_range`: for image-to-image, the values of the network that are the levels 0 and 255.
    """

    task: Task
    pixels: Pixels
    axes: Mapping[str, Range] = field(default_factory=lambda: {"batch": DEFAULT_BATCH})
    labels: tuple[str, ...] = ()
    output_range: tuple[float, float] = (0.0, 1.0)


def image_contract(network: nn.Module, said: ImageTask) -> Contract:
    """Run the network once at the size of `said.pixels` and describe its outputs. Raises NetworkFailure, ContractError."""
    strange = sorted(set(said.axes) - set(PIXEL_AXES))
    if strange:
        raise ContractError(f"an image has the axes batch, height and width, got {', '.join(strange)}")
    pixels = said.pixels
    fixed = dict(zip(PIXEL_AXES, (1, pixels.height, pixels.width), strict=True))
    shape = tuple(axis if axis in said.axes else fixed[axis] for axis in PIXEL_AXES)
    given = replace(pixel_input(pixels), shape=(*shape, pixels.channels))
    x = torch.rand((2 if "batch" in said.axes else 1, pixels.channels, pixels.height, pixels.width), generator=torch.Generator().manual_seed(0))
    outputs = tuple(_described(name, value, said) for name, value in named_outputs(network, (x,)))
    return Contract(task=said.task, inputs=(given,), outputs=_named_for_task(outputs, said), axes=dict(said.axes), labels=said.labels)


def named_outputs(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[tuple[str, Tensor]]:
    """The tensors that the network returns, in the order of `wrap.flatten`, named by their keys or numbered."""
    was_training = [module for module in network.modules() if module.training]
    try:
        with torch.inference_mode():
            answer = network.eval()(*inputs)
    except Exception as error:  # whatever the user's code raises
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
        raise NetworkFailure(f"the network fails on an input of shape {shapes}: {first_line(error)}; name the size and the channels it takes") from error
    finally:
        for module in was_training:
            module.training = True
    try:
        tensors = flatten(answer)
    except TypeError as error:
        raise ContractError(f"{error}; let a wrapper around the network return tensors alone") from error
    if not tensors or any(tensor.ndim == 0 for tensor in tensors):
        raise ContractError("each output needs at least one axis, but one is a single number; let a wrapper leave it out")
    if isinstance(answer, Mapping) and len(answer) == len(tensors):
        return list(zip(map(str, answer), tensors, strict=True))
    return [("output" if len(tensors) == 1 else f"output_{index}", tensor) for index, tensor in enumerate(tensors)]


def _described(name: str, value: Tensor, said: ImageTask) -> Output:
    batch: int | str = "batch" if "batch" in said.axes else value.shape[0]
    dynamic = {"height", "width"} & set(said.axes)
    rest: tuple[int | str, ...] = tuple(value.shape[1:])
    if dynamic and value.ndim == 4:  # an image keeps its size; how other maps follow it is the graph's business
        same = tuple(value.shape[2:]) == (said.pixels.height, said.pixels.width)
        rest = (value.shape[1], *(("height", "width") if same else ("?", "?")))
    return Output(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=(batch, *rest), kind="tensor")


def _named_for_task(outputs: tuple[Output, ...], said: ImageTask) -> tuple[Output, ...]:
    """The first output takes the kind that the task needs. Raises ContractError where its shape does not fit."""
    first, rest = outputs[0], outputs[1:]
    wanted = {"classification": 2, "embedding": 2, "segmentation": 4, "image-to-image": 4}.get(said.task, len(first.shape))
    if len(first.shape) != wanted:
        raise ContractError(f"{said.task} needs a first output with {wanted} axes, but {first.name!r} has the shape {first.shape}; name another task")
    if said.task == "classification":
        return (replace(first, kind="logits", name="logits" if first.name == "output" else first.name), *rest)
    if said.task == "image-to-image":
        batch, channels, height, width = first.shape
        if channels not in (1, 3):
            raise ContractError(f"image-to-image needs 1 or 3 channels out, but {first.name!r} has {channels}; name another task")
        image = Output(name="image", dtype="uint8", shape=(batch, height, width, channels), kind="pixels", range=said.output_range)
        return (image, *rest)
    return outputs


def pixels_of_weights(weights: Any) -> Pixels:
    """The preprocessing of a torchvision weights object: its `transforms()` (resize, centre crop, mean, std). Raises ExportError."""
    preset = weights.transforms()
    try:
        crop = preset.crop_size[0] if hasattr(preset, "crop_size") else preset.resize_size[0]
        resize = preset.resize_size[0]
        kind = FILTERS[preset.interpolation]
        return Pixels(
            height=crop,
            width=crop,
            resize="crop",
            resize_shorter_px=resize,
            interpolation=kind,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ExportError(f"{weights}: expected the transforms of a classification or segmentation model, got {preset!r}; give a contract instead") from error


def parse_axes(text: str) -> dict[str, Range]:
    """Read "batch=1..64,height=32..1024:32,width"; an axis without a range gets 1..64 for the batch, 32..1024 for a side.

    A step comes after a colon. Raises ContractError.
    """
    axes: dict[str, Range] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, _, span = part.partition("=")
        if name in axes:
            raise ContractError(f"the axis {name} is named twice")
        default = DEFAULT_BATCH if name == "batch" else Range(low=32, high=1024)
        if not span:
            axes[name] = default
            continue
        span, _, step = span.partition(":")
        low, dots, high = span.partition("..")
        if not dots or not all(each.isascii() and each.isdigit() for each in (low, high, step or "1")):
            raise ContractError(f"expected an axis as name=low..high or name=low..high:step, such as height=32..1024:32, got {part!r}")
        axes[name] = Range(low=int(low), high=int(high), step=int(step or 1))
    return axes


def with_axes(contract: Contract, axes: Mapping[str, Range]) -> Contract:
    """The contract with these axes dynamic and every other one fixed at its own size, the batch at 1. Raises ContractError."""
    strange = sorted(set(axes) - set(contract.axes))
    if strange:
        raise ContractError(f"this contract has the axes {', '.join(contract.axes)}, got {', '.join(strange)}")
    image = next((each.pixels for each in contract.inputs if each.pixels is not None), None)
    fixed = {"batch": 1, **({"height": image.height, "width": image.width} if image else {})}
    lost = sorted(set(contract.axes) - set(axes) - set(fixed))
    if lost:
        raise ContractError(f"the axes {', '.join(lost)} have no size of their own to be fixed at; name them with --dynamic")

    def settled(shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
        return tuple(fixed[axis] if axis in contract.axes and axis not in axes and isinstance(axis, str) else axis for axis in shape)

    return replace(
        contract,
        axes=dict(axes),
        inputs=tuple(replace(each, shape=settled(each.shape)) for each in contract.inputs),
        outputs=tuple(replace(each, shape=settled(each.shape)) for each in contract.outputs),
    )


def read_contract(path: Path) -> Contract:
    """A contract that the user wrote as JSON, in the form of the manifest's, or a whole manifest. Raises ContractError."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ContractError(f"{path}: the contract cannot be read ({error.strerror})") from error
    except json.JSONDecodeError as error:
        raise ContractError(f"{path}: the contract is not JSON ({error})") from error
    if isinstance(said, dict) and isinstance(said.get("contract"), dict):
        said = said["contract"]
    try:
        return Contract.from_dict(said)
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from error


def read_labels(path: Path) -> tuple[str, ...]:
    """One label a line; blank lines are dropped. Raises ContractError."""
    try:
        labels = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ContractError(f"{path}: the labels cannot be read ({error})") from error
    if not labels:
        raise ContractError(f"{path}: expected one label a line, but the file is empty")
    return labels
