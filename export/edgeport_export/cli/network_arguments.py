"""What a user says of a network of his own in a shell, and the contract that this describes."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torchvision

from edgeport_export.network.contract_files import read_contract, read_labels
from edgeport_export.network.contracts import DEFAULT_BATCH, ImageTask, parse_axes, pixels_of_weights, with_axes
from edgeport_runtime import Contract, ContractError, DetectionHead, InputError, Pixels
from edgeport_runtime.pixels import Interpolation, Resize
from edgeport_runtime.tasks import TaskName, find_task


@dataclass(frozen=True, kw_only=True)
class NetworkArguments:
    """A user's description of a network of their own, as text; None if it is not given."""

    contract: Path | None = None
    task: str | None = None
    size_px: tuple[int, int] | None = None
    gray: bool = False
    mean: str | None = None
    std: str | None = None
    resize: str | None = None
    interpolation: str | None = None
    labels: Path | None = None
    output_range: str | None = None
    detection: str | None = None
    transforms: str | None = None

    def are_given(self) -> bool:
        """Whether there is any."""
        return self != NetworkArguments()


def described_contract(described: NetworkArguments, dynamic: str | None) -> Contract | ImageTask:
    """The contract that was described; `dynamic`: axes with ranges. Raises ContractError."""
    if described.contract is not None:
        if described != NetworkArguments(contract=described.contract):
            raise ContractError("--contract describes the whole input: leave out --task, --size and their like")
        contract = read_contract(described.contract)
        return with_axes(contract, parse_axes(dynamic)) if dynamic is not None else contract
    axes = parse_axes(dynamic) if dynamic is not None else {"batch": DEFAULT_BATCH}
    labels = read_labels(described.labels) if described.labels is not None else ()
    name = cast(TaskName, "classification" if described.task is None else described.task)
    return ImageTask(task=name, pixels=_pixels(described), axes=axes, labels=labels, detection=_detection(described), **_output_range(described))


def _output_range(described: NetworkArguments) -> dict[str, Any]:
    """Nothing if it was left out, for which ImageTask has the default. Raises ContractError."""
    if described.output_range is None:
        return {}
    if find_task(described.task or "classification").output_kind not in ("pixels", "map"):
        raise ContractError("--output-range is for --task image-to-image and map: the values of the network that become the levels 0 and 255")
    values = tuple(_numbers(described.output_range, "--output-range"))
    if len(values) != 2 or not values[0] < values[1]:
        raise ContractError(f"--output-range: expected two numbers, black and white, such as -1,1, got {described.output_range!r}")
    return {"output_range": values}


def _detection(described: NetworkArguments) -> DetectionHead | None:
    """From name=value pairs, with DetectionHead's own defaults for what is left out. Raises ContractError."""
    if described.detection is None:
        if described.task is not None and find_task(described.task).needs_head:
            raise ContractError("--task detection needs --detection, which says how the outputs are read, such as --detection box_format=center")
        return None
    if described.task is None or not find_task(described.task).needs_head:
        raise ContractError("--detection is for --task detection: it says how the outputs of a detector are read")
    defaults = {each.name: each.default for each in fields(DetectionHead)}
    given: dict[str, Any] = {}
    for part in filter(None, (each.strip() for each in described.detection.split(","))):
        name, equals, text = (each.strip() for each in part.partition("="))
        if name in given:
            raise ContractError(f"--detection: {name} is given twice")
        if name not in defaults or not equals:
            raise ContractError(f"--detection: expected name=value with a name among {', '.join(defaults)}, got {part!r}")
        given[name] = text if isinstance(defaults[name], str) else _json_value(text)
    return DetectionHead(**given)


def _json_value(text: str) -> Any:
    """A number, true, false or none; other text as it is, which DetectionHead refuses by name."""
    try:
        return json.loads({"none": "null"}.get(text.lower(), text.lower()))
    except ValueError:
        return text


def _pixels(described: NetworkArguments) -> Pixels:
    if described.transforms is not None:
        if replace(described, task=None, labels=None, output_range=None) != NetworkArguments(transforms=described.transforms):
            raise ContractError("--transforms describes the pixels completely: leave out --size, --gray, --mean, --std, --resize and --interpolation")
        return pixels_of_weights(_weights(described.transforms))
    if described.size_px is None:
        raise ContractError("name the size in pixels that the network is used at with --size HEIGHTxWIDTH, or take it from --transforms")
    rule, _, shorter = (described.resize or "stretch").partition(":")
    if shorter and rule != "crop":
        raise ContractError(f"only crop takes a number of pixels, as in crop:256, got {described.resize!r}")
    return Pixels(
        height=described.size_px[0],
        width=described.size_px[1],
        mode="L" if described.gray else "RGB",
        resize=cast(Resize, rule),
        resize_shorter_px=_number(shorter, "--resize crop:SHORTER_PX", int) if shorter else None,
        interpolation=cast(Interpolation, described.interpolation or "bilinear"),
        mean=_numbers(described.mean, "--mean"),
        std=_numbers(described.std, "--std"),
    )


def _numbers(text: str | None, option: str) -> Any:
    """None if the option was left out, for which Pixels has the default."""
    return None if text is None else tuple(_number(part, option, float) for part in text.split(","))


def _number(text: str, option: str, kind: Any) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise InputError(f"{option}: expected a number, got {text!r}") from error


def _weights(name: str) -> Any:
    enum, _, member = name.partition(".")
    try:
        return getattr(torchvision.models.get_model_weights(enum) if enum.islower() else getattr(torchvision.models, enum), member or "DEFAULT")
    except (AttributeError, ValueError) as error:
        raise ContractError(f"expected a weights object of torchvision.models, such as ResNet50_Weights.IMAGENET1K_V2, got {name!r}") from error
