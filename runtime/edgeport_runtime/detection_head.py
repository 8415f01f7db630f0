"""How the raw outputs of a detector are read: what its numbers mean, and which of its boxes are kept."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Literal, get_args

from .axes import is_whole

BoxFormat = Literal["corners", "center", "distances"]
Unit = Literal["pixels", "share"]
Activation = Literal["none", "sigmoid", "softmax"]
Objectness = Literal["none", "product", "root"]
Group = Literal["image", "level", "class"]
Role = Literal["boxes", "scores", "objectness", "points", "levels", "joined"]  # kinds of outputs that a detector's contract may have
ROLES: tuple[Role, ...] = get_args(Role)
TURNED = ("boxes", "scores", "joined")  # see DetectionHead.anchors_axis


@dataclass(frozen=True, kw_only=True)
class DetectionHead:
    """How a detector's outputs become boxes. Outputs are told apart by their kinds, each for all anchors of an image:

        "boxes"       float32 (batch, anchors, 4)
        "scores"      float32 (batch, anchors, columns)
        "objectness"  float32 (batch, anchors) or (batch, anchors, 1); only if `objectness` is not "none"
        "points"      float32 (batch, anchors, 2), x and y of each anchor; only for "distances"
        "levels"      int64 (batch, anchors), the feature map that each anchor is of; only if `candidates_per` is "level"
        "joined"      boxes, then objectness if there is any, then scores in one tensor, instead of the first three

    `box_format`: "corners" (left, top, right, bottom), "center" (x, y, width, height), or "distances" from an anchor's point to the four sides.
    `unit`: "pixels" of the network's input, or "share" of its width and height, 0..1.
    `anchors_axis`: 1, or 2 for boxes, scores and joined of shape (batch, columns, anchors).
    `activation`: of scores; of objectness, too, where a softmax stands for a sigmoid.
    `objectness`: "product" with the score, or "root", the square root of that.
    `background`: the column that stands for nothing. `label_offset`: what is added to a column to give the index of a class.
    `best_class`: an anchor answers with its best class alone; otherwise with every class above the threshold.
    `score_threshold`: scores above it count, 0..1. `candidates`: so many with the highest scores go on, `candidates_per` image, level or class; None: all.
    `iou_threshold`: see `boxes.suppress`; None: nothing is suppressed. `class_aware`: only boxes of one class suppress each other.
    `clip`: boxes end at the border of the network's input before they suppress each other. `most`: boxes in an answer.
    """

    box_format: BoxFormat = "corners"
    unit: Unit = "pixels"
    anchors_axis: int = 1
    activation: Activation = "sigmoid"
    objectness: Objectness = "none"
    background: int | None = None
    label_offset: int = 0
    best_class: bool = False
    score_threshold: float = 0.05
    candidates: int | None = 1000
    candidates_per: Group = "image"
    iou_threshold: float | None = 0.5
    class_aware: bool = True
    clip: bool = True
    most: int = 100

    def faults(self, outputs: Sequence[Any], labels: Sequence[str]) -> Iterator[str]:
        """What is wrong with it, in words. `outputs`: the contract's, of type Output."""
        wrong = [*self._value_faults()]
        yield from wrong or self._output_faults(outputs, labels)

    def _value_faults(self) -> Iterator[str]:
        allowed = {"box_format": BoxFormat, "unit": Unit, "activation": Activation, "objectness": Objectness, "candidates_per": Group}
        for name, values in allowed.items():
            if getattr(self, name) not in get_args(values):
                yield f"detection.{name} must be one of {list(get_args(values))}, got {getattr(self, name)!r}"
        if self.anchors_axis not in (1, 2):
            yield f"detection.anchors_axis must be 1 or 2, got {self.anchors_axis!r}"
        for name in ("score_threshold", "iou_threshold"):
            value = getattr(self, name)
            if not (name == "iou_threshold" and value is None) and not (_is_number(value) and 0 <= value <= 1):
                yield f"detection.{name} must be in 0..1, got {value!r}"
        for name, least in (("candidates", 1), ("most", 1), ("background", 0), ("label_offset", None)):
            value, optional = getattr(self, name), name in ("candidates", "background")
            if not (optional and value is None) and not (is_whole(value) and (least is None or value >= least)):
                bound = ("" if least is None else f" of at least {least}") + (" or None" if optional else "")
                yield f"detection.{name} must be a whole number{bound}, got {value!r}"
        for name in ("best_class", "class_aware", "clip"):
            if not isinstance(getattr(self, name), bool):
                yield f"detection.{name} must be true or false, got {getattr(self, name)!r}"

    def _output_faults(self, outputs: Sequence[Any], labels: Sequence[str]) -> Iterator[str]:
        given = {each.kind: each for each in outputs if each.kind in ROLES}
        joined = "joined" in given
        needed = {"joined"} if joined else {"boxes", "scores", *({"objectness"} if self.objectness != "none" else ())}
        needed |= ({"points"} if self.box_format == "distances" else set()) | ({"levels"} if self.candidates_per == "level" else set())
        if sorted(each.kind for each in outputs if each.kind in ROLES) != sorted(needed):
            named = ", ".join(f"{each.name!r} of kind {each.kind}" for each in outputs)
            yield (
                f"a detector that is read so needs one output each of the kinds {', '.join(sorted(needed))}, got {named}; "
                "a network returns them in a dict with these keys, or joins boxes and scores in one tensor"
            )
            return
        shapes = [*self._shape_faults(given)]
        yield from shapes
        if not shapes:
            yield from self._column_faults(given, labels)

    def _shape_faults(self, given: dict[str, Any]) -> Iterator[str]:
        """Outputs that are no tables of anchors, or of different anchors."""
        anchors: dict[str, int | str] = {}
        for kind, each in given.items():
            axis = self.anchors_axis if kind in TURNED else 1
            columns = each.shape[3 - axis] if len(each.shape) == 3 else None
            wanted = {"boxes": 4, "points": 2, "objectness": 1}.get(kind, columns)
            flat = kind == "levels" or (kind == "objectness" and len(each.shape) == 2)
            if len(each.shape) != (2 if flat else 3) or (not flat and (columns != wanted or not isinstance(columns, int))):
                yield f"output {each.name!r} of kind {kind} has the shape {tuple(each.shape)}, which is none of those that DetectionHead lists"
                continue
            if not each.dtype.startswith("int" if kind == "levels" else "float"):
                yield f"output {each.name!r} of kind {kind} has the dtype {each.dtype}, expected {'int64' if kind == 'levels' else 'float32'}"
            anchors[each.name] = each.shape[axis]
        if len({size for size in anchors.values() if isinstance(size, int)}) > 1:
            yield f"a detector's outputs have one row for each anchor, got {', '.join(f'{size} in {name!r}' for name, size in anchors.items())}"

    def _column_faults(self, given: dict[str, Any], labels: Sequence[str]) -> Iterator[str]:
        """Columns of scores and labels that do not belong to each other."""
        table, extra = (given["joined"], 4 + (self.objectness != "none")) if "joined" in given else (given["scores"], 0)
        columns = int(table.shape[3 - self.anchors_axis]) - extra
        if columns < 1 or (self.background is not None and self.background >= columns):
            yield f"a detector has scores for at least one class, and the background is one of their columns, got {columns} columns and {self.background}"
            return
        lost = [column for column in range(columns) if column != self.background and not 0 <= column + self.label_offset < (len(labels) or math.inf)]
        if lost:
            yield f"column {lost[0]} of the scores with label_offset {self.label_offset} is none of the {len(labels)} labels"
        elif len(labels) > max(0, columns + self.label_offset) or (labels and self.label_offset > 0):
            yield f"{len(labels)} labels for {columns} columns of scores with label_offset {self.label_offset}: each label needs a column"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "DetectionHead":
        """Read what `dataclasses.asdict` wrote. Raises TypeError for a field that is missing or unknown."""
        names = {each.name for each in fields(cls)}
        if set(data) != names:
            raise TypeError(f"detection: {', '.join(sorted(set(data) ^ names))} missing or unknown")
        return cls(**data)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
