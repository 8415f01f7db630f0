"""The contract: what a model promises to whoever feeds it, in one frozen value that travels with every file."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, get_args

from .errors import ContractError, InputError
from .json_text import canonical_json
from .tasks import TASKS, OutputKind, TaskName

Resize = Literal["stretch", "crop", "letterbox", "keep"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
DTYPES = ("float32", "float64", "float16", "uint8", "int8", "uint16", "int16", "int32", "int64", "bool")
CHANNELS = {"RGB": 3, "L": 1}
METADATA_KEY = "edgeport.contract"
NARROW_KEY = "edgeport.narrow_weights"  # in int8 graphs whose weights keep to 7 bits, so that no product of theirs saturates


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """How an image becomes the uint8 pixels a network is fed, and how the graph normalizes them.

    `height`, `width`: the size in pixels that the network is used at unless the caller names another.
    `mode`: "RGB" (3 channels) or "L" (gray, 1 channel).
    `resize`: "stretch" to height x width; "crop": the shorter side to `resize_shorter_px`, which only this one takes, then the center;
        "letterbox": fit inside, padded with `fill`; "keep": the image's own size.
    `interpolation`: Pillow's filter, antialiased whenever the image shrinks.
    `mean`, `std`: per channel, for pixels scaled to 0..1: the network sees (pixel / 255 - mean) / std. Left out, they are 0 and 1.
    """

    height: int
    width: int
    mode: Literal["RGB", "L"] = "RGB"
    resize: Resize = "stretch"
    resize_shorter_px: int | None = None
    interpolation: Interpolation = "bilinear"
    fill: int = 114
    mean: tuple[float, ...] = None  # type: ignore[assignment]  # a tuple from here on: see __post_init__
    std: tuple[float, ...] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        channels = CHANNELS.get(self.mode, 3) if isinstance(self.mode, str) else 3
        for name, value in (("mean", 0.0), ("std", 1.0)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, (value,) * channels)

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for gray."""
        return CHANNELS[self.mode]

    def faults(self) -> list[str]:
        """What is wrong with it, in words; empty if nothing is."""
        sides = {name: getattr(self, name) for name in ("height", "width")}
        found = [f"pixels.{name} must be a whole number of at least 1, got {size!r}" for name, size in sides.items() if not is_whole(size) or size < 1]
        for name, given in (("mean", self.mean), ("std", self.std)):
            if not isinstance(given, tuple | list) or not all(isinstance(each, Real) for each in given):
                return [*found, f"pixels.{name} must be a tuple of numbers, one for each channel, got {given!r}"]
        for name, allowed in (("mode", tuple(CHANNELS)), ("resize", get_args(Resize)), ("interpolation", get_args(Interpolation))):
            if getattr(self, name) not in allowed:
                found.append(f"pixels.{name} must be one of {list(allowed)}, got {getattr(self, name)!r}")
        for name in ("mean", "std"):
            if self.mode in CHANNELS and len(getattr(self, name)) != self.channels:
                found.append(f"pixels.{name} must have {self.channels} values for mode {self.mode}, got {len(getattr(self, name))}")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            found.append(f"pixels.mean and pixels.std must be finite, got {self.mean} and {self.std}")
        elif any(not value > 0 for value in self.std):
            found.append(f"pixels.std must be above 0, got {self.std}")
        return [*found, *self._resize_faults()]

    def _resize_faults(self) -> list[str]:
        found, shorter_px = [], self.resize_shorter_px
        if not (shorter_px is None if self.resize != "crop" else isinstance(shorter_px, int) and shorter_px >= 1):
            found.append(f"pixels.resize_shorter_px must be at least 1 if resize is 'crop', and None otherwise, got {shorter_px!r}")
        if not 0 <= self.fill <= 255:
            found.append(f"pixels.fill must be in 0..255, got {self.fill}")
        return found


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of the graph. `shape` holds sizes, or names of axes; `pixels` is None for a plain tensor."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    pixels: Pixels | None = None

    def faults(self) -> list[str]:
        """What is wrong with it, in words; empty if nothing is."""
        if self.pixels is None:
            return []
        found = self.pixels.faults()
        if self.dtype != "uint8" or len(self.shape) != 4 or self.shape[-1] != CHANNELS.get(self.pixels.mode):
            found.append(f"input {self.name!r} holds pixels, so it must be uint8 of shape (batch, height, width, channels), got {self.dtype} {self.shape}")
        return found


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output of the graph: `kind` says what it means, `shape` names the axes it follows.

    `range`: for pixels, the values of the network that become the levels 0 and 255.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    kind: OutputKind
    range: tuple[float, float] = (-1.0, 1.0)


def is_whole(value: object) -> bool:
    """Whether it is a whole number, Python's or numpy's; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Range:
    """The sizes that an axis promises: from `low` to `high`, both included, in steps of `step`."""

    low: int
    high: int
    step: int = 1

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.low <= size <= self.high and (size - self.low) % self.step == 0

    def __str__(self) -> str:
        return f"{self.low}..{self.high}" + (f" in steps of {self.step}" if self.step > 1 else "")

    def faults(self) -> list[str]:
        """What is wrong with it, in words; empty if nothing is."""
        good = all(map(is_whole, (self.low, self.high, self.step))) and 1 <= self.low <= self.high and self.step >= 1
        return [] if good else [f"the range {self}: expected 1 <= low <= high and a step of at least 1"]

    def nearest(self, size: int) -> int:
        """The promised size that is nearest to `size`."""
        steps = round((min(max(size, self.low), self.high) - self.low) / self.step)
        return self.low + min(steps, (self.high - self.low) // self.step) * self.step


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a model promises: its task, inputs, dynamic axes with their ranges, outputs and labels.

    Raises ContractError listing every fault at once.
    """

    task: TaskName
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    axes: Mapping[str, Range] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        found = [fault for each in self.inputs for fault in each.faults()]
        if self.task not in TASKS:
            found.append(f"task must be one of {list(TASKS)}, got {self.task!r}")
        if not self.inputs or not self.outputs:
            found.append("at least one input and one output are needed")
        named = {axis for each in self.inputs for axis in each.shape if isinstance(axis, str)}
        if isinstance(self.labels, str) or not all(isinstance(label, str) for label in self.labels):
            found.append(f"labels must be several texts, one for each class, got {self.labels!r}")
        found += [f"axis {axis!r} of an input has no range" for axis in sorted(named - set(self.axes))]
        found += [f"axis {axis!r} has a range but is in no input" for axis in sorted(set(self.axes) - named)]
        found += [f"axis {name!r} has {fault}" for name, size in self.axes.items() for fault in size.faults()]
        found += [*self._naming_faults(), *self._size_faults()]
        if self.task in TASKS and not isinstance(self.labels, str):
            images = [each.pixels is not None for each in self.inputs]
            found += TASKS[self.task].faults(images, self.outputs[0].shape if self.outputs else (), self.labels)
        if found:
            raise ContractError("the contract contradicts itself: " + "; ".join(found))

    def _naming_faults(self) -> Iterator[str]:
        ends: tuple[Input | Output, ...] = (*self.inputs, *self.outputs)
        names = [each.name for each in ends]
        if len(set(names)) < len(names) or not all(names):
            yield f"inputs and outputs need names, each its own, got {', '.join(map(repr, names))}"
        for each in ends:
            if each.dtype not in DTYPES:
                yield f"{each.name!r} has the dtype {each.dtype!r}, expected one of {', '.join(DTYPES)}"

    def _size_faults(self) -> Iterator[str]:
        """A model's own size must be one of those it promises."""
        for each in self.inputs:
            for axis, size in (("height", each.pixels.height), ("width", each.pixels.width)) if each.pixels is not None else ():
                if axis in each.shape and axis in self.axes and not self.axes[axis].faults() and size not in self.axes[axis]:
                    yield f"the {axis} of {each.name!r} is {size} px, which is not within its own range {self.axes[axis]}"

    @property
    def pixels(self) -> Pixels:
        """The pixels of the only image input. Raises ContractError for a contract of plain tensors."""
        if self.inputs[0].pixels is None:
            raise ContractError("this contract takes plain tensors, not images: use raw() with arrays")
        return self.inputs[0].pixels

    @property
    def largest_batch(self) -> int:
        """The largest batch of the first input: its first axis."""
        axis = self.inputs[0].shape[0]
        return axis if isinstance(axis, int) else self.axes[axis].high

    def require_arrays(self, arrays: Mapping[str, Any]) -> None:
        """Check names, dtypes and shapes (axes within their ranges, one size for each name) before a run.

        Raises InputError that names the input, what was expected and what came.
        """
        if set(arrays) != {each.name for each in self.inputs}:
            raise InputError(f"expected the inputs {sorted(each.name for each in self.inputs)}, got {sorted(map(str, arrays))}")
        for each in self.inputs:
            array = arrays[each.name]
            if str(array.dtype) != each.dtype or len(array.shape) != len(each.shape):
                wanted = f"{each.dtype} with axes ({', '.join(map(str, each.shape))})"
                raise InputError(f"input {each.name!r}: expected {wanted}, got {array.dtype} of shape {tuple(array.shape)}")
        self.require_shapes({name: tuple(array.shape) for name, array in arrays.items()})

    def require_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """The part of `require_arrays` that needs no arrays: axes within their ranges, one size for each name. Raises InputError."""
        sizes: dict[str, int] = {}
        for each in self.inputs:
            for position, (axis, size) in enumerate(zip(each.shape, shapes[each.name], strict=True)):
                self._require_size(each.name, position, axis, size, sizes)

    def _require_size(self, name: str, position: int, axis: int | str, size: int, sizes: dict[str, int]) -> None:
        if isinstance(axis, int):
            if size != axis:
                raise InputError(f"input {name!r}: expected {axis} along axis {position}, got {size}")
        elif size not in self.axes[axis]:
            raise InputError(f"input {name!r}: {axis} must be within {self.axes[axis]}, got {size}")
        elif sizes.setdefault(axis, size) != size:
            raise InputError(f"input {name!r}: {axis} is {sizes[axis]} in another input, but {size} here")

    def to_dict(self) -> dict[str, Any]:
        """Everything as what JSON knows; `from_dict` reads it."""
        return asdict(self)

    def to_json(self) -> str:
        """Canonical text: equal contracts give equal bytes."""
        return canonical_json(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Contract":
        """Read what `to_dict` wrote. Raises ContractError if a field is missing, unknown or of the wrong kind."""
        try:
            return cls(
                task=data["task"],
                inputs=tuple(_input(each) for each in data["inputs"]),
                outputs=tuple(Output(**_tuples(each)) for each in data["outputs"]),
                axes={name: Range(**size) for name, size in data["axes"].items()},
                labels=tuple(str(label) for label in data["labels"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ContractError(f"this is not a contract that this version of edgeport can read ({type(error).__name__}: {error})") from error

    @classmethod
    def from_json(cls, text: str) -> "Contract":
        """Read what `to_json` wrote. Raises ContractError."""
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise ContractError(f"the contract is not JSON: {error}") from error


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples: lists become tuples again, so that equal contracts compare equal."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _input(data: Mapping[str, Any]) -> Input:
    pixels = data["pixels"]
    if pixels is not None:  # format 1 had 0 for no size
        pixels = Pixels(**{**_tuples(pixels), "resize_shorter_px": pixels.get("resize_shorter_px") or None})
    return Input(**{**_tuples(data), "pixels": pixels})


def pixel_input(pixels: Pixels, name: str = "pixels") -> Input:
    """The input every image network has: uint8 (batch, height, width, channels)."""
    return Input(name=name, dtype="uint8", shape=("batch", "height", "width", CHANNELS.get(pixels.mode, 0)), pixels=pixels)


def image_axes(*, smallest_px: int, largest_px: int = 1024, largest_batch: int = 64) -> dict[str, Range]:
    """Ranges for the three axes of an image input."""
    side = Range(low=smallest_px, high=largest_px)
    return {"batch": Range(low=1, high=largest_batch), "height": side, "width": side}


def classification(pixels: Pixels, labels: tuple[str, ...], axes: Mapping[str, Range]) -> Contract:
    """One image in, one row of logits out: float32 (batch, classes)."""
    logits = Output(name="logits", dtype="float32", shape=("batch", len(labels)), kind="logits")
    return Contract(task="classification", inputs=(pixel_input(pixels),), outputs=(logits,), axes=axes, labels=labels)


def image_to_image(pixels: Pixels, axes: Mapping[str, Range]) -> Contract:
    """One image in, an image of the same size out: uint8 (batch, height, width, channels)."""
    image = Output(name="image", dtype="uint8", shape=("batch", "height", "width", pixels.channels), kind="pixels")
    return Contract(task="image-to-image", inputs=(pixel_input(pixels),), outputs=(image,), axes=axes)
