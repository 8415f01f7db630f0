"""`edgeport export`: from names to a bundle, for a network of the registry or of the user's own. The demo does the same."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from edgeport_export.bundle.staging import free_place
from edgeport_export.model_libraries import is_library_name
from edgeport_export.network.contract_files import read_labels
from edgeport_export.network.contracts import ImageTask, at_size, parse_axes, with_axes
from edgeport_export.network.preflight import check_modules
from edgeport_export.options import ExportOptions
from edgeport_export.pipeline import export_bundle
from edgeport_export.progress import ProgressCallback, no_progress
from edgeport_export.quantization.plan import read_plan
from edgeport_export.report.page import Subject, report_page, write_texts
from edgeport_export.request import make_request
from edgeport_export.sources import RANDOM, NetworkSource, is_factory, load_examples, load_factory, load_source, own_examples
from edgeport_models import CheckpointError, DataError, network
from edgeport_models.datasets import Part
from edgeport_runtime import Bundle, DetectionHead, InputError, Pixels

from .network_arguments import NetworkArguments, described_contract
from .report_command import free_file, stages_of

OWN_WEIGHTS = "what the factory or the library gives"


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """A network, and the place for its bundle.

    `name`: of the registry, my.package:factory, timm:NAME or torchvision:NAME. `dynamic`: axes with ranges, the contract's own if None.
    `precision`: None is fp32, and int8 if it pays; int8 that is named is kept in any case. `plan`: a bundle or file whose int8 plan is replayed.
    These two replace the precisions and the plan of `options`. `report`: a file for a page about it.
    `weights_key`, `strip_prefix`: see `edgeport_models.weights.load_state`.
    """

    name: str
    out: Path
    checkpoint: Path | None = None
    weights_key: str | None = None
    strip_prefix: str | None = None
    random_weights: bool = False
    calibration: str | None = None
    held_out: str | None = None
    precision: str | None = None
    dynamic: str | None = None
    described: NetworkArguments = field(default_factory=NetworkArguments)
    plan: Path | None = None
    options: ExportOptions = field(default_factory=ExportOptions)
    force: bool = False
    report: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedExport:
    """Everything that an export needs, loaded and checked, before any of its work."""

    source: NetworkSource
    calibration: Part
    held_out: Part
    options: ExportOptions
    facts: Mapping[str, str]


def prepare_export(job: ExportJob) -> PreparedExport:
    """Build the network, load its weights, find its images. Raises what its parts raise."""
    plan = read_plan(job.plan) if job.plan is not None else None
    named = [part.strip() for part in job.precision.split(",")] if job.precision is not None else ["int8"]
    precisions = ("fp32", *(each for each in named if each != "fp32"))  # without fp32 there is nothing to compare with
    options = replace(job.options, precisions=precisions, always_keep_int8="int8" in (job.precision or ""), plan=plan)
    free_place(job.out, force=job.force)  # before the network is loaded
    if job.report is not None:
        free_file(job.report, force=job.force)
    source = _source(job)
    data = source.data if job.calibration is None else job.calibration
    calibration, held_out = _examples(job, source, data)
    if data is not None and not calibration and "int8" in precisions and plan is None:
        raise DataError(f"{data}: it holds so few images that none of them fell to calibration; give more, or --precision fp32")
    origin = {"checkpoint_sha256": source.checkpoint_sha256, "calibration": data, "held_out": job.held_out, "model": job.name}
    facts = {key: fact for key, fact in {**origin, **_weights_facts(job, source)}.items() if fact is not None}
    return PreparedExport(source=source, calibration=calibration, held_out=held_out, options=options, facts=facts)


def run_export(job: ExportJob, progress: ProgressCallback) -> Bundle:
    """Build, load, export, and tell about it. Raises what its parts raise."""
    prepared = prepare_export(job)
    bundle = export_bundle(
        prepared.source.network,
        prepared.source.contract,
        job.out,
        name=prepared.source.name,
        calibration=prepared.calibration,
        held_out=prepared.held_out,
        provenance=prepared.facts,
        options=prepared.options,
        force=job.force,
        progress=progress,
    )
    if job.report is not None:
        examples = prepared.held_out or prepared.calibration
        found = stages_of(bundle, prepared.source.network, examples, progress)
        guesses = [prepared.held_out] if bundle.evidence().get("quality") else []
        write_texts({job.report: report_page([Subject(bundle=bundle, guesses=guesses, verification=found)])})
    return bundle


def describe_export(job: ExportJob) -> Iterator[str]:
    """What an export would do, in lines: weights, preprocessing, contract, and which images do what. Nothing is traced or written."""
    prepared = prepare_export(job)
    source, options, contract = prepared.source, prepared.options, prepared.source.contract
    request = make_request(source.network, contract, source.name, prepared.calibration, prepared.held_out, prepared.facts, options, no_progress)
    check_modules(source.network, contract)
    request.require_readable_images()
    parameters = sum(each.numel() for each in source.network.parameters())
    yield f"network: {source.name} ({type(source.network).__name__}), {parameters:,} parameters"
    loaded = prepared.facts.get("weights", "all tensors of the file, under the network's own names")
    yield f"weights: {loaded if job.checkpoint is not None or job.random_weights else OWN_WEIGHTS}"
    for each in contract.inputs:
        yield f"input:   {each.name}: {each.dtype} ({', '.join(map(str, each.shape))})"
        if each.pixels is not None:
            yield f"pixels:  {_pixels_in_words(each.pixels)}"
    for output in contract.outputs:
        levels = f", {output.range[0]:g}..{output.range[1]:g} become the levels 0..255" if output.kind == "pixels" else ""
        yield f"output:  {output.name}: {output.dtype} ({', '.join(map(str, output.shape))}){levels}"
    if contract.detection is not None:
        head, plain = asdict(contract.detection), asdict(DetectionHead())
        yield f"boxes:   {', '.join(f'{name}={value}' for name, value in head.items() if value != plain[name]) or 'as DetectionHead has them'}"
    yield f"axes:    {', '.join(f'{name} {sizes}' for name, sizes in contract.axes.items()) or 'all are fixed'}"
    yield f"labels:  {', '.join(contract.labels[:5]) + (f' and {len(contract.labels) - 5} more' if len(contract.labels) > 5 else '') or 'none'}"
    yield f"int8:    {_int8_in_words(prepared, request.wants_int8, request.int8_refusal)}"
    yield f"bundle:  {job.out}, which {'would be replaced' if job.out.exists() else 'is free'}; nothing was written"


def _pixels_in_words(pixels: Pixels) -> str:
    resize = f"crop from a shorter side of {pixels.resize_shorter_px}" if pixels.resize == "crop" else pixels.resize
    return f"{pixels.height}x{pixels.width} {pixels.mode}, {resize}, {pixels.interpolation}; (pixel / 255 - {pixels.mean}) / {pixels.std}"


def _int8_in_words(prepared: PreparedExport, wanted: bool, refusal: str | None) -> str:
    if "int8" not in prepared.options.precisions:
        return "not asked for"
    if refusal is not None or not wanted:
        return refusal or "none, because no calibration images were given"
    given, used = len(prepared.calibration), min(len(prepared.calibration), prepared.options.calibration_images)
    judge = f"{len(prepared.held_out)} others, with their truth, judge it" if prepared.held_out else "no truth judges it, so its nearness to fp32 decides"
    return f"calibrated with {used} of {given} images{' of ' + prepared.facts['calibration'] if 'calibration' in prepared.facts else ''}; {judge}"


def _examples(job: ExportJob, source: NetworkSource, data: str | None) -> tuple[Part, Part]:
    """What calibrates and what judges. A network that `edgeport train` made knows what it learned from; that of a factory is the user's own."""
    if is_factory(job.name):
        return own_examples(data, job.held_out, source.contract)
    assert data is not None  # a checkpoint names its data
    calibration, held_out = load_examples(data, source.contract)
    return calibration, held_out if job.held_out is None else own_examples(None, job.held_out, source.contract)[1]


def _weights_facts(job: ExportJob, source: NetworkSource) -> dict[str, str | None]:
    """Which of a checkpoint's tensors were taken, if that has to be told."""
    loaded = source.weights
    if job.random_weights:
        return {"weights": RANDOM}
    return {} if loaded is None or loaded.is_plain else {"weights": str(loaded), "weights_key": loaded.place}


def _library_source(job: ExportJob) -> NetworkSource:
    """A network of timm or torchvision, whose description --size, --labels and --dynamic change."""
    described = job.described
    if described != NetworkArguments(size_px=described.size_px, labels=described.labels):
        raise InputError(f"{job.name} brings its own preprocessing: only --size, --labels and --dynamic change it")
    if job.random_weights and job.checkpoint is not None:
        raise InputError("--random-weights and --checkpoint exclude each other")
    labels = read_labels(described.labels) if described.labels is not None else ()

    def changed(task: ImageTask) -> ImageTask:
        axes = parse_axes(job.dynamic) if job.dynamic is not None else task.axes
        return replace(task, axes=axes, labels=labels or task.labels, pixels=at_size(task.pixels, described.size_px))

    asked = {"weights_key": job.weights_key, "strip_prefix": job.strip_prefix, "random_weights": job.random_weights}
    return load_factory(job.name, job.checkpoint, changed, classes=len(labels) or None, **asked)  # type: ignore[arg-type]


def _source(job: ExportJob) -> NetworkSource:
    if is_library_name(job.name):
        return _library_source(job)
    if is_factory(job.name):
        own = job.described in (NetworkArguments(), NetworkArguments(labels=job.described.labels))  # the factory's own contract, perhaps with labels
        given = None if own else described_contract(job.described, job.dynamic)
        source = load_factory(job.name, job.checkpoint, given, weights_key=job.weights_key, strip_prefix=job.strip_prefix, random_weights=job.random_weights)
        if own and job.described.labels is not None:
            source = replace(source, contract=replace(source.contract, labels=read_labels(job.described.labels)))
        return replace(source, contract=with_axes(source.contract, parse_axes(job.dynamic))) if own and job.dynamic is not None else source
    network(job.name)  # an unknown name is the first thing to say
    if job.described.are_given():
        raise InputError(f"the checkpoint of {job.name} brings its own contract: --task, --size, --contract and their like are for my.package:factory")
    if job.weights_key is not None or job.strip_prefix is not None:
        raise InputError(f"the checkpoint of {job.name} holds one set of weights: --weights-key and --strip-prefix are for my.package:factory")
    if job.checkpoint is None:
        raise CheckpointError(f"{job.name} needs its trained weights: name them with --checkpoint")
    source = load_source(job.checkpoint, job.name)
    if job.dynamic is None:
        return source
    return replace(source, contract=with_axes(source.contract, parse_axes(job.dynamic)))
