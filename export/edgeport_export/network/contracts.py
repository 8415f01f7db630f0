"""The contract of a user's own network: from a few facts about its input, and one run that shows its outputs."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from edgeport_export.errors import ExportError, NetworkFailure
from edgeport_runtime import Contract, ContractError, DetectionHead, Output, Pixels, Range
from edgeport_runtime.contract import pixel_input
from edgeport_runtime.detection_head import ROLES, Role
from edgeport_runtime.errors import first_line
from edgeport_runtime.tasks import TaskName, find_task

from .size_sweep import other_sizes
from .wrapper import flatten

PIXEL_AXES = ("batch", "height", "width")
MOST_OF_UNIT = 3.0  # of a mean or std for pixels in 0..1; the smallest in levels that we have seen is 50
DEFAULT_BATCH = Range(low=1, high=64)
FILTERS = {mode: mode.value for mode in (InterpolationMode.NEAREST, InterpolationMode.BILINEAR, InterpolationMode.BICUBIC, InterpolationMode.LANCZOS)}


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """A user's description of a network with one image input.

    `axes`: ranges of the axes among batch, height and width that are dynamic, a batch of 1..64 if left out; the others are fixed, the batch at 1.
    `output_range`: for image-to-image and map, the values of the network that are the levels 0 and 255; `unit`: of a map. `detection`: how the outputs
    are read, which the network returns in a dict by their kinds ("boxes", "scores", …), or joined in one tensor.
    """

    task: TaskName
    pixels: Pixels
    axes: Mapping[str, Range] = field(default_factory=lambda: {"batch": DEFAULT_BATCH})
    labels: tuple[str, ...] = ()
    output_range: tuple[float, float] = (0.0, 1.0)
    unit: str = ""
    detection: DetectionHead | None = None

    def __post_init__(self) -> None:
        """Raises ContractError for what is no description."""
        if not isinstance(self.pixels, Pixels):
            raise ContractError(f"pixels must be a Pixels, such as Pixels(height=224, width=224), got {self.pixels!r}")
        ranges = isinstance(self.axes, Mapping) and all(isinstance(each, Range) for each in self.axes.values())
        if not ranges:
            raise ContractError(f"axes must be a mapping from names to ranges, such as {{'batch': Range(low=1, high=16)}}, got {self.axes!r}")
        found = [*self.pixels.faults(), *(f"axis {name!r} has {fault}" for name, sizes in self.axes.items() for fault in sizes.faults())]
        if found:
            raise ContractError("; ".join(found))


def image_contract(network: nn.Module, task: ImageTask) -> Contract:
    """Run the network once at the size of `task.pixels` and describe its outputs. Raises NetworkFailure, ContractError."""
    unknown = sorted(set(task.axes) - set(PIXEL_AXES))
    if unknown:
        raise ContractError(f"an image has the axes batch, height and width, got {', '.join(unknown)}")
    pixels = task.pixels
    require_unit_range(pixels)
    fixed = {"batch": 1, "height": pixels.height, "width": pixels.width}
    axes = _moving(task.axes, fixed)
    shape = tuple(axis if axis in axes else fixed[axis] for axis in PIXEL_AXES)
    given = replace(pixel_input(pixels), shape=(*shape, pixels.channels))
    if axes.get("batch", DEFAULT_BATCH).low > 1:
        raise ContractError(f"a single image is a batch of 1, so the batch must start there, got {axes['batch']}: batch=1..{axes['batch'].high}")
    first = {**fixed, "batch": 2 if "batch" in axes else 1}
    second = other_sizes(axes, first, least=1)
    named = named_outputs(network, (_image(pixels, first),), taken={given.name})
    moved = {axis: _elsewhere(network, pixels, {**first, axis: size}, len(named)) for axis, size in second.items() if size != first[axis]}
    if all(None not in others for others in moved.values()):
        outputs = tuple(_told_apart(name, value, {axis: moved[axis][i] for axis in moved}, first, second) for i, (name, value) in enumerate(named))
    else:  # a network that takes square images alone, or that preflight will refuse
        together = _elsewhere(network, pixels, second, len(named))
        outputs = tuple(_described(name, value, other, first, second) for (name, value), other in zip(named, together, strict=True))
    return Contract(task=task.task, inputs=(given,), outputs=_named_for_task(outputs, task), axes=axes, labels=task.labels, detection=task.detection)


def require_unit_range(pixels: Pixels) -> None:
    """Raises ContractError for a mean or std in levels of 0..255, as OpenCV and mmcv write them: the network would see other numbers, consistently."""
    levels = {name: values for name, values in (("mean", pixels.mean), ("std", pixels.std)) if any(abs(value) > MOST_OF_UNIT for value in values)}
    if levels:
        given = " and ".join(f"{name} {values}" for name, values in levels.items())
        divided = "; ".join(f"{name} {','.join(f'{value / 255:.4g}' for value in values)}" for name, values in levels.items())
        raise ContractError(f"{given} belong to levels in 0..255, but edgeport's are for pixels scaled to 0..1: divide by 255 ({divided})")


def _moving(axes: Mapping[str, Range], own: Mapping[str, int]) -> dict[str, Range]:
    """The axes without those of one size, which must be the contract's own. Raises ContractError."""
    for name, sizes in axes.items():
        if sizes.low == sizes.high and own.get(name, sizes.low) != sizes.low:
            raise ContractError(f"{name}={sizes} holds one size, which is not the contract's own {own[name]}: leave {name} out, or name its own size")
    return {name: sizes for name, sizes in axes.items() if sizes.low != sizes.high or name not in own}


def _image(pixels: Pixels, sizes: Mapping[str, int]) -> Tensor:
    return torch.rand((sizes["batch"], pixels.channels, sizes["height"], sizes["width"]), generator=torch.Generator().manual_seed(0))


def _elsewhere(network: nn.Module, pixels: Pixels, sizes: Mapping[str, int], count: int) -> list[Tensor | None]:
    """The outputs at other sizes; None for each if the network does not run there, which preflight reports."""
    try:
        found = [value for _, value in named_outputs(network, (_image(pixels, sizes),))]
    except (NetworkFailure, ContractError):
        found = []
    return list(found) if len(found) == count else [None] * count


def named_outputs(network: nn.Module, inputs: tuple[Tensor, ...], taken: Collection[str] = ()) -> list[tuple[str, Tensor]]:
    """The tensors that the network returns, in the order of `flatten`, named by their keys or numbered; `taken` names get "_out" appended."""
    was_training = [module for module in network.modules() if module.training]
    try:
        with torch.no_grad():  # not inference_mode: what a lazy module makes of itself here is to be exported
            answer = network.eval()(*inputs)
    except Exception as error:  # whatever the user's code raises
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
        others = any(parameter.is_floating_point() and parameter.dtype != torch.float32 for parameter in network.parameters())
        remedy = "call .float() on it, since fp16 is made by edgeport" if others else "name the size that it takes, or one gray channel (--gray, mode='L')"
        raise NetworkFailure(f"the network fails on an input of shape {shapes}: {first_line(error)}; {remedy}") from error
    finally:
        for module in was_training:
            module.training = True
    try:
        tensors = flatten(answer)
    except TypeError as error:
        raise ContractError(f"{error}; let a wrapper around the network return tensors alone") from error
    if not tensors or any(tensor.ndim == 0 for tensor in tensors):
        raise ContractError("each output needs at least one axis, but one is a single number; let a wrapper leave it out")
    keys = [str(key) for key, value in answer.items() if value is not None] if isinstance(answer, Mapping) else []
    if len(keys) == len(tensors):
        return [(f"{key}_out" if key in taken else key, tensor) for key, tensor in zip(keys, tensors, strict=True)]
    return [("output" if len(tensors) == 1 else f"output_{index}", tensor) for index, tensor in enumerate(tensors)]


def _told_apart(name: str, value: Tensor, moved: Mapping[str, Tensor | None], first: Mapping[str, int], second: Mapping[str, int]) -> Output:
    """Each axis of the output by the one axis of the input that moves it, as far as that moved. Any other that moves is "?"."""
    shape: list[int | str] = []
    for position, size in enumerate(value.shape):
        found = {axis: other.shape[position] if other is not None and other.ndim == value.ndim else None for axis, other in moved.items()}
        movers = [axis for axis, there in found.items() if there != size]
        alone = movers[0] if len(movers) == 1 else None
        same = alone is not None and (size, found[alone]) == (first[alone], second[alone])
        shape.append(size if not movers else alone if same and alone is not None else "?")
    return Output(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=tuple(shape), kind="tensor")


def _described(name: str, value: Tensor, other: Tensor | None, first: Mapping[str, int], second: Mapping[str, int]) -> Output:
    """From two sizes at which all axes differ: one that moved with one of the input's is that one; any other that moved is "?"."""
    moving = {axis: (size, second[axis]) for axis, size in first.items() if size != second[axis]}
    shape: list[int | str] = []
    for position, size in enumerate(value.shape):
        if other is None or other.ndim != value.ndim:  # one size alone is known: the batch comes first, and an image keeps its size
            guess = "batch" if position == 0 and "batch" in moving else "?" if value.ndim == 4 and position > 1 and len(moving) > 1 else size
            shape.append(guess)
            continue
        pair = (size, other.shape[position])
        known = [axis for axis, sizes in moving.items() if sizes == pair]
        shape.append(size if pair[0] == pair[1] else known[0] if known else "?")
    return Output(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=tuple(shape), kind="tensor")


def _named_for_task(outputs: tuple[Output, ...], task: ImageTask) -> tuple[Output, ...]:
    """The first output takes the kind that the task needs. Raises ContractError if its shape does not fit."""
    first, rest, kind = outputs[0], outputs[1:], find_task(task.task)
    if kind.needs_head:
        return _detector_outputs(outputs)
    if kind.output_axes is not None and len(first.shape) != kind.output_axes:
        raise ContractError(f"{task.task} needs a first output with {kind.output_axes} axes, but {first.name!r} has the shape {first.shape}; name another task")
    if kind.output_kind == "logits":
        rival = next((each.name for each in rest if "logit" in each.name.lower() and len(each.shape) == 2), "")
        if rival and "logit" not in first.name.lower():
            raise ContractError(f"{task.task} answers from the first output, which is {first.name!r}, not {rival!r}: let a wrapper return {rival!r} first")
        return (replace(first, kind="logits", name="logits" if first.name == "output" else first.name), *rest)
    if kind.output_kind == "pixels":
        batch, channels, height, width = first.shape
        if channels not in (1, 3):
            raise ContractError(f"{task.task} needs 1 or 3 channels out, but {first.name!r} has {channels}; name another task")
        image = Output(name="image", dtype="uint8", shape=(batch, height, width, channels), kind="pixels", range=task.output_range)
        return (image, *rest)
    if kind.output_kind == "map":
        if len(first.shape) not in (3, 4) or (len(first.shape) == 4 and first.shape[1] != 1):
            raise ContractError(f"a map is (batch, height, width) or (batch, 1, height, width), got {first.name!r} of shape {first.shape}")
        return (replace(first, kind="map", range=task.output_range, unit=task.unit), *rest)
    return outputs


def _detector_outputs(outputs: tuple[Output, ...]) -> tuple[Output, ...]:
    """Outputs that are named by what they are; a single one joins boxes and scores."""
    kinds: dict[str, Role] = {outputs[0].name: "joined"} if len(outputs) == 1 else {role: role for role in ROLES}
    return tuple(replace(each, kind=kinds.get(each.name, "tensor")) for each in outputs)


def require_classes(contract: Contract) -> None:
    """Raises ContractError for a task with classes that has only one: every answer would be sure."""
    axis = find_task(contract.task).classes_axis
    if axis is not None and contract.outputs[0].shape[axis:][:1] == (1,):
        raise ContractError(
            f"{contract.task} needs at least two classes, but {contract.outputs[0].name!r} has one: for one logit z let the network return "
            "torch.cat([torch.zeros_like(z), z], 1), whose softmax is sigmoid(z), or name the task tensors"
        )


def pixels_of_weights(weights: Any) -> Pixels:
    """The preprocessing of a torchvision weights object: its `transforms()` (resize, center crop, mean, std). Raises ExportError."""
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
        if axes[name].faults():
            raise ContractError(f"{part!r}: expected low..high:step with 1 <= low <= high and a step of at least 1, such as height=32..1024:32")
    return axes


def with_axes(contract: Contract, axes: Mapping[str, Range]) -> Contract:
    """The contract with these axes dynamic and every other one fixed at its own size, the batch at 1. Raises ContractError."""
    unknown = sorted(set(axes) - set(contract.axes))
    if unknown:
        raise ContractError(f"this contract has the axes {', '.join(contract.axes)}, got {', '.join(unknown)}")
    image = next((each.pixels for each in contract.inputs if each.pixels is not None), None)
    fixed = {"batch": 1, **({"height": image.height, "width": image.width} if image else {})}
    axes = _moving(axes, fixed)
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


def at_size(pixels: Pixels, size_px: tuple[int, int] | None) -> Pixels:
    """The same preprocessing at another size; the shorter side that is cropped from keeps its proportion."""
    if size_px is None:
        return pixels
    shorter = pixels.resize_shorter_px
    scaled = None if shorter is None else round(shorter * min(size_px) / min(pixels.height, pixels.width))
    return replace(pixels, height=size_px[0], width=size_px[1], resize_shorter_px=scaled)
