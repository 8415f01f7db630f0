"""One export from names to a bundle: what `edgeport export` and the demo both do, for a network of the registry or of the user's own."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torchvision

from edgeport_models import CheckpointError, DataError
from edgeport_models.datasets import Part
from edgeport_runtime import Bundle, Contract, ContractError, InputError, Pixels
from edgeport_runtime.contract import Interpolation, Resize, Task

from .contracts import DEFAULT_BATCH, ImageTask, parse_axes, pixels_of_weights, read_contract, read_labels, with_axes
from .options import ExportOptions
from .pipeline import export_bundle
from .plan import read_plan
from .progress import Watch
from .source import Source, is_factory, load_examples, load_factory, load_source
from .write import require_free


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a user says of a network of their own, as text; empty where nothing was said."""

    contract: Path | None = None
    task: str = ""
    size_px: tuple[int, int] | None = None
    grey: bool = False
    mean: str = ""
    std: str = ""
    resize: str = ""
    interpolation: str = ""
    labels: Path | None = None
    transforms: str = ""

    def anything(self) -> bool:
        return self != Said()


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What to export and where to.

    `name`: of the registry, or my.package:factory. `dynamic`: axes with ranges, the contract's own if empty. `precision`: empty is fp32, and
    int8 where it pays; int8 that is named is kept in any case. `plan`: a bundle or file whose int8 plan is replayed. The precisions and
    the plan of `options` are overruled by these two.
    """

    name: str
    out: Path
    checkpoint: Path | None = None
    calibration: str = ""
    precision: str = ""
    dynamic: str = ""
    said: Said = field(default_factory=Said)
    plan: Path | None = None
    options: ExportOptions = field(default_factory=ExportOptions)
    force: bool = False


def run_export(job: ExportJob, watch: Watch) -> Path:
    """Build, load, export. Raises what its parts raise; nothing is written then."""
    plan = read_plan(job.plan) if job.plan is not None else None
    precisions = tuple(part.strip() for part in job.precision.split(",")) if job.precision else ("fp32", "int8")
    options = replace(job.options, precisions=precisions, insist="int8" in job.precision, plan=plan)
    require_free(job.out, force=job.force)
    source = _source(job)
    data = job.calibration or source.data
    calibration: Part
    held_out: Part
    calibration, held_out = load_examples(data, source.contract) if data else ([], [])
    if data and not calibration and "int8" in precisions and plan is None:
        raise DataError(f"{data}: it holds so few images that none of them fell to calibration, which takes one in ten; give more, or --precision fp32")
    if not data and plan is None and not options.insist:  # a factory without images: no int8, which the manifest says
        options = replace(options, precisions=tuple(each for each in precisions if each != "int8"))
    provenance = {"checkpoint_sha256": source.checkpoint_sha256, "calibration": data, "model": job.name}
    return export_bundle(
        source.network,
        source.contract,
        job.out,
        name=source.name,
        calibration=calibration,
        held_out=held_out,
        provenance=provenance,
        options=options,
        force=job.force,
        watch=watch,
    )


def _source(job: ExportJob) -> Source:
    if is_factory(job.name):
        own = job.said in (Said(), Said(labels=job.said.labels))  # nothing said but labels: the factory's own contract, with them
        source = load_factory(job.name, job.checkpoint, None if own else _contract(job))
        if own and job.said.labels is not None:
            source = replace(source, contract=replace(source.contract, labels=read_labels(job.said.labels)))
        return replace(source, contract=with_axes(source.contract, parse_axes(job.dynamic))) if own and job.dynamic else source
    if job.said.anything():
        raise InputError(f"the checkpoint of {job.name} brings its own contract: --task, --size, --contract and their like are for my.package:factory")
    if job.checkpoint is None:
        raise CheckpointError(f"{job.name} needs its trained weights: name them with --checkpoint")
    source = load_source(job.checkpoint, job.name)
    if not job.dynamic:
        return source
    return replace(source, contract=with_axes(source.contract, parse_axes(job.dynamic)))


def _contract(job: ExportJob) -> Contract | ImageTask:
    """What was said of the network. Raises ContractError."""
    said = job.said
    if said.contract is not None:
        if said != Said(contract=said.contract):
            raise ContractError("--contract says everything about the input: leave out --task, --size and their like")
        contract = read_contract(said.contract)
        return with_axes(contract, parse_axes(job.dynamic)) if job.dynamic else contract
    axes = parse_axes(job.dynamic) if job.dynamic else {"batch": DEFAULT_BATCH}
    labels = read_labels(said.labels) if said.labels is not None else ()
    return ImageTask(task=cast(Task, said.task or "classification"), pixels=_pixels(said), axes=axes, labels=labels)


def _pixels(said: Said) -> Pixels:
    if said.transforms:
        if said.grey or said.mean or said.std or said.resize or said.interpolation or said.size_px:
            raise ContractError("--transforms says everything about the pixels: leave out --size, --grey, --mean, --std, --resize and --interpolation")
        return pixels_of_weights(_weights(said.transforms))
    if said.size_px is None:
        raise ContractError("name the size in pixels that the network is used at with --size HEIGHTxWIDTH, or take it from --transforms")
    channels = 1 if said.grey else 3
    rule, _, shorter = said.resize.partition(":")
    if shorter and rule != "crop":
        raise ContractError(f"only crop takes a number of pixels, as in crop:256, got {said.resize!r}")
    return Pixels(
        height=said.size_px[0],
        width=said.size_px[1],
        mode="L" if said.grey else "RGB",
        resize=cast(Resize, rule or "stretch"),
        resize_shorter_px=_number(shorter, "--resize crop:SHORTER_PX", int) if shorter else 0,
        interpolation=cast(Interpolation, said.interpolation or "bilinear"),
        mean=_numbers(said.mean, "--mean") or (0.0,) * channels,
        std=_numbers(said.std, "--std") or (1.0,) * channels,
    )


def _numbers(text: str, option: str) -> tuple[float, ...]:
    return tuple(_number(part, option, float) for part in text.split(",")) if text else ()


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


def source_of_bundle(bundle: Bundle, checkpoint: str | Path | None, model: str) -> Source:
    """The network that a bundle was made from, under the bundle's own contract. Raises InputError where it is not named."""
    contract = bundle.manifest.contract
    if model:
        return load_factory(model, checkpoint, contract)
    if checkpoint is None:
        made_from = bundle.manifest.provenance.get("model", "")
        raise InputError(f"name the weights with --checkpoint{f', and the network with --model {made_from}' if is_factory(made_from) else ''}")
    source = load_source(checkpoint)
    return replace(source, contract=contract) if _same_but_ranges(source.contract, contract) else source


def _same_but_ranges(first: Contract, second: Contract) -> bool:
    """Whether two contracts differ in nothing but their dynamic axes, which `--dynamic` may have changed."""
    return (first.task, first.labels, first.inputs[0].pixels) == (second.task, second.labels, second.inputs[0].pixels)
