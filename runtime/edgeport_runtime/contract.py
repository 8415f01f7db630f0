"""The contract: what a model promises to whoever feeds it, in one frozen value that travels with every file."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .axes import Range
from .detection_head import DetectionHead
from .errors import ContractError, InputError
from .json_text import canonical_json
from .pixels import CHANNELS, Pixels
from .tasks import TASKS, OutputKind, TaskName

DTYPES = ("float32", "float64", "float16", "uint8", "int8", "uint16", "int16", "int32", "int64", "bool")
METADATA_KEY = "edgeport.contract"
NARROW_KEY = "edgeport.narrow_weights"  # in int8 graphs whose weights keep to 7 bits, so that no product of theirs saturates


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

    `range`: for pixels and maps, the values of the network that become the levels 0 and 255. `names`: of the numbers of one image, or of its points
    (kind "landmarks", x and y each). `unit`: of a map or of numbers, such as "m"; of points "px" of the network's input, or "share" of its sides.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    kind: OutputKind
    range: tuple[float, float] = (-1.0, 1.0)
    names: tuple[str, ...] = ()
    unit: str = ""

    def faults(self) -> list[str]:
        """What is wrong with it, in words; empty if nothing is."""
        if isinstance(self.names, str) or not all(isinstance(name, str) and name for name in self.names) or not isinstance(self.unit, str):
            return [f"output {self.name!r}: names must be several texts and the unit one, got {self.names!r} and {self.unit!r}"]
        found = []
        sizes, each = self.shape[1:], "two numbers" if self.kind == "landmarks" else "one number"
        numbers = math.prod(size for size in sizes if isinstance(size, int)) if all(isinstance(size, int) for size in sizes) else None
        if (self.names or self.kind == "landmarks") and numbers != len(self.names) * (2 if self.kind == "landmarks" else 1):
            found.append(f"output {self.name!r} of shape {self.shape} has {len(self.names)} names, each for {each} of an image")
        if self.kind == "landmarks" and self.unit not in ("px", "share"):
            found.append(f"output {self.name!r} holds points, whose unit is 'px' or 'share', got {self.unit!r}")
        if self.kind == "map" and not self.range[0] < self.range[1]:
            found.append(f"output {self.name!r} needs a range from a lower to a higher value, got {self.range}")
        return found


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a model promises: its task, inputs, dynamic axes with their ranges, outputs and labels. `detection`: how a detector's outputs are read.

    Raises ContractError listing every fault at once.
    """

    task: TaskName
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    axes: Mapping[str, Range] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    detection: DetectionHead | None = None

    def __post_init__(self) -> None:
        found = [fault for each in self.inputs for fault in each.faults()] + [fault for each in self.outputs for fault in each.faults()]
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
            found += self._detection_faults()
        if found:
            raise ContractError("the contract contradicts itself: " + "; ".join(found))

    def _detection_faults(self) -> Iterator[str]:
        if TASKS[self.task].needs_head is not (self.detection is not None):
            yield "the task 'detection', and no other, needs `detection`, a DetectionHead that says how its outputs are read"
        elif not isinstance(self.detection, DetectionHead | None):
            yield f"detection must be a DetectionHead, got {type(self.detection).__name__}"
        elif self.detection is not None:
            yield from self.detection.faults(self.outputs, self.labels)

    def _naming_faults(self) -> Iterator[str]:
        ends: tuple[Input | Output, ...] = (*self.inputs, *self.outputs)
        names = [each.name for each in ends]
        if len(set(names)) < len(names) or not all(names):
            yield f"inputs and outputs need names, each its own, got {', '.join(map(repr, names))}"
        numbers = [name for each in self.outputs for name in each.names]
        if len(set(numbers)) < len(numbers):
            yield f"numbers and points of an image need names, each its own, got {', '.join(map(repr, numbers))}"
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
    def takes_one_image(self) -> bool:
        """Whether it answers images, and not plain tensors."""
        return [each.pixels is not None for each in self.inputs] == [True]

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
        """Everything as what JSON knows; `from_dict` reads it. What only some tasks have is left out of the others."""
        data = asdict(self)
        if self.detection is None:
            del data["detection"]
        for each in data["outputs"]:
            for name in ("names", "unit"):
                if not each[name]:
                    del each[name]
        return data

    def to_json(self) -> str:
        """Canonical text: equal contracts give equal bytes."""
        return canonical_json(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Contract":
        """Read what `to_dict` wrote. Raises ContractError if a field is missing, unknown or of the wrong kind."""
        unknown = sorted(map(str, set(data) - {each.name for each in fields(cls)})) if isinstance(data, Mapping) else []
        if unknown:
            raise ContractError(f"the contract has fields that this version of edgeport does not know: {', '.join(unknown)[:100]}")
        try:
            return cls(
                task=data["task"],
                inputs=tuple(_input(each) for each in data["inputs"]),
                outputs=tuple(Output(**_tuples(each)) for each in data["outputs"]),
                axes={name: Range(**size) for name, size in data["axes"].items()},
                labels=tuple(str(label) for label in data["labels"]),
                detection=DetectionHead.from_dict(data["detection"]) if data.get("detection") is not None else None,
            )
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ContractError(f"this is not a contract that this version of edgeport can read ({type(error).__name__}: {error})") from error

    @classmethod
    def from_json(cls, text: str) -> "Contract":
        """Read what `to_json` wrote. Raises ContractError."""
        try:
            data = json.loads(text)
            json.dumps(data, ensure_ascii=False).encode()  # half of a surrogate pair is no text, and nothing could print it
            return cls.from_dict(data)
        except (ValueError, RecursionError) as error:
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


def classification(pixels: Pixels, labels: tuple[str, ...], axes: Mapping[str, Range]) -> Contract:
    """One image in, one row of logits out: float32 (batch, classes)."""
    logits = Output(name="logits", dtype="float32", shape=("batch", len(labels)), kind="logits")
    return Contract(task="classification", inputs=(pixel_input(pixels),), outputs=(logits,), axes=axes, labels=labels)


def image_to_image(pixels: Pixels, axes: Mapping[str, Range]) -> Contract:
    """One image in, an image of the same size out: uint8 (batch, height, width, channels)."""
    image = Output(name="image", dtype="uint8", shape=("batch", "height", "width", pixels.channels), kind="pixels")
    return Contract(task="image-to-image", inputs=(pixel_input(pixels),), outputs=(image,), axes=axes)
