"""Where a bundle's contract differs from what its network itself promises: the checkpoint's contract, or the description that a factory gives."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from edgeport_export.network.contracts import ImageTask
from edgeport_runtime import Contract

WHERE = "in the bundle, {} with the network"
FIRST = 3  # labels that are named


def contract_changes(bundle: Contract, own: Contract | ImageTask) -> tuple[str, ...]:
    """In words. Dynamic axes may differ, since an export may promise others; so may the names of inputs and outputs."""
    found = [*_changed("task", bundle.task, own.task)]
    pixels, theirs = bundle.inputs[0].pixels, own.pixels if isinstance(own, ImageTask) else own.inputs[0].pixels
    if pixels is not None and theirs is not None:
        for each in fields(pixels):
            found += _changed(each.name, getattr(pixels, each.name), getattr(theirs, each.name))
    if own.labels:
        found += _label_changes(bundle.labels, own.labels)
    for place, output in enumerate(bundle.outputs):
        other = None if isinstance(own, ImageTask) or place >= len(own.outputs) else own.outputs[place]
        if output.kind == "pixels" and (isinstance(own, ImageTask) or other is not None):
            found += _changed(f"the range of {output.name}", output.range, own.output_range if isinstance(own, ImageTask) else other and other.range)
    return tuple(found)


def _changed(name: str, ours: Any, theirs: Any) -> Iterator[str]:
    if ours != theirs:
        yield f"{name} is {ours} {WHERE.format(theirs)}"


def _label_changes(ours: tuple[str, ...], theirs: tuple[str, ...]) -> Iterator[str]:
    if len(ours) != len(theirs):
        yield f"there are {len(ours)} labels {WHERE.format(len(theirs))}"
        return
    moved = [index for index, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    if moved:
        named = ", ".join(f"{ours[index]!r} instead of {theirs[index]!r} for class {index}" for index in moved[:FIRST])
        kind = "in another order than the network's" if sorted(ours) == sorted(theirs) else "others than the network's"
        yield f"the labels are {kind}: {named}" + (f", and {len(moved) - FIRST} more" if len(moved) > FIRST else "")
