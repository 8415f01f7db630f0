"""From a path to a model that runs: which variant, on which device, with which session."""

import hashlib
import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .bundle import Bundle
from .contract import METADATA_KEY, NARROW_KEY, Contract
from .device import SessionOptions, require_cuda
from .engine import Engine
from .errors import AlteredError, BundleError, DeviceError, FormatError, InputError, first_line
from .image_limits import LIMITS, ImageLimits
from .installation import onnxruntime, require_onnxruntime
from .load_options import LoadOptions, SessionFactory
from .manifest import MOST_BYTES
from .memory import MEMORY_MB, UNMEASURED, RunBounds, measured_bytes_per_pixel
from .model import Model
from .outline import Outline, read_outline
from .regular_files import read_regular
from .selection import choose, require_batch, should_split_batch, with_exact_int8

INTEGERS = {"QuantizeLinear", "DequantizeLinear", "MatMulInteger"}  # operators of int8 variants
REPLACED = 20  # times that a bundle may be replaced while it is loaded


def load(
    path: str | Path,
    *,
    device: str = "cpu",
    precision: str = "auto",
    batch: int = 1,
    threads: int | None = None,
    latency: str = "normal",
    tf32: bool = False,
    split_batch: bool | None = None,
    max_batch: int | None = None,
    max_memory_mb: float = MEMORY_MB,
    session: SessionFactory | None = None,
    image_limits: ImageLimits = LIMITS,
    manifest_sha256: str | None = None,
) -> Model:
    """Load a bundle, or a lone .onnx file that edgeport wrote.

    `device`: "cpu" or "cuda": that one, or an error that says why not. "auto" takes CUDA if it can start, and `Model.reason` says what was taken and why.
    `precision`: "auto", "fp32", "int8" or "fp16".
    `batch`: the typical number of images per call. With precision="auto", the bundle may prefer int8 only from a certain batch size; the choice
    is made once at load time and used for every call.
    `threads`: of this model; None takes as many as CPU affinity and cgroup quota allow.
    `latency`: "lowest" lets idle threads wait actively without end, for cores that nothing else uses.
    `tf32`: see SessionOptions.
    `split_batch`: see SessionOptions; None takes what was faster for such a `batch` when the bundle was made.
    `max_batch`, `max_memory_mb`: bounds of one run of `Model.batch`: images, and memory in MB for intermediate results. What an image takes is known
    from the bundle's evidence, or taken as 512 bytes a pixel; one image runs in any case, and `Model.raw` runs what it is given.
    `session`: for a provider of your own: a function from the model's bytes, whose hash was checked, to an onnxruntime.InferenceSession.

    `image_limits`: what an image may be before it is decoded. `manifest_sha256`: what the bundle's must be, for whoever got it by another way.

    Raises BundleError, DeviceError or InputError.
    """
    options = LoadOptions(
        device=device,
        precision=precision,
        batch=batch,
        threads=threads,
        latency=latency,
        tf32=tf32,
        split_batch=split_batch,
        max_batch=max_batch,
        max_memory_mb=max_memory_mb,
        session=session,
        image_limits=image_limits,
        manifest_sha256=manifest_sha256,
    )
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path must name a bundle's folder or an .onnx file, got {type(path).__name__}")
    return _load(Path(path), options)


def load_again(path: Path, sha256: str, options: LoadOptions) -> Model:
    """A model as it was loaded, for a copy or another process. `sha256`: of the manifest then, or of the lone file. Raises AlteredError if it changed."""
    model = _load(path, options)
    if model.origin is None or model.origin.args[1] != sha256:
        model.close()
        raise AlteredError(f"{path}: this is another bundle than the model was loaded from (sha256); load it again by its path")
    return model


def _load(path: Path, options: LoadOptions) -> Model:
    device, reason = _device(options)
    try:
        model, sha256 = _load_on(device, path, options)
    except DeviceError as error:
        if options.device != "auto" or device == "cpu":
            raise
        reason = f"CUDA could not start: {error}"
        model, sha256 = _load_on("cpu", path, options)
    if options.device == "auto":
        model.reason += f"; on {model.device}, because {reason}"
    model.origin = partial(load_again, path.absolute(), sha256, options)
    return model


def _device(options: LoadOptions) -> tuple[str, str]:
    """The device to try first, and why."""
    if options.device != "auto":
        return options.device, "asked for"
    if options.precision == "int8" or options.split_batch:
        return "cpu", f"{'int8' if options.precision == 'int8' else 'split_batch'} was asked for, which runs on a CPU"
    try:
        require_cuda(onnxruntime())
    except DeviceError as error:
        return "cpu", str(error)
    return "cuda", "CUDA could start"


def _load_on(device: str, path: Path, options: LoadOptions) -> tuple[Model, str]:
    """The model, and the hash of what it was loaded from."""
    session_options = options.session_options(device)
    if path.suffix == ".onnx":
        if options.manifest_sha256 is not None:
            raise InputError("manifest_sha256 is of a bundle's manifest, and a lone .onnx file has none: leave it out, or load the bundle's folder")
        data = _read(path)
        model, sha256 = _load_file(path, data, session_options, options), hashlib.sha256(data).hexdigest()
        require_batch(options.batch, model.contract)
        model.bounds = _bounds(model, {}, options)
    else:
        model, sha256 = _load_whole(path, session_options, options)
    model.image_limits = options.image_limits
    return model, sha256


def _load_whole(path: Path, session_options: SessionOptions, options: LoadOptions) -> tuple[Model, str]:
    """A model of one bundle, although another one may take its place at any moment (`edgeport export --force`). Then the new one is loaded."""
    for last in (*[False] * REPLACED, True):
        bundle = Bundle(path, options.manifest_sha256)
        try:
            model = _load_bundle(bundle, session_options, options)
        except AlteredError:
            if last or not bundle.was_replaced():
                raise
            continue
        model.bounds = _bounds(model, _evidence(bundle), options)
        if last or not bundle.was_replaced():
            break
        model.close()
    return model, bundle.sha256


def _load_bundle(bundle: Bundle, session_options: SessionOptions, options: LoadOptions) -> Model:
    batch = require_batch(options.batch, bundle.manifest.contract)
    chosen, reason = choose(bundle, session_options.device, options.precision, platform.machine(), batch)
    if options.split_batch is None and options.session is None:
        session_options = replace(session_options, split_batch=should_split_batch(bundle, session_options, chosen, batch))
    model = _load_variant(bundle, chosen, reason, session_options, options)
    if chosen == "fp16" and options.precision == "auto":
        report = model.check()
        if not report:
            model.close()
            return _load_variant(bundle, "fp32", f"fp16 does not pass its golden cases on this card: {report}", session_options, options)
        model.reason += ", and its golden cases passed on this card"
    return model


def _load_variant(bundle: Bundle, chosen: str, reason: str, session_options: SessionOptions, options: LoadOptions) -> Model:
    path, variant, contract = bundle.folder, bundle.variant(chosen), bundle.manifest.contract
    require_onnxruntime(variant.onnxruntime, path)
    model = bundle.read(variant)
    if _contract(_outline(model, path, own_session=options.session is not None), path).to_json() != contract.to_json():
        raise BundleError(f"{path}: the contract inside {variant.file} is not the manifest's; export the bundle again")
    saturable = variant.target is not None and not variant.target.narrow_weights
    engine, reason = _engine(model, contract, session_options, options, reason, saturable=saturable)
    return Model(engine, precision=chosen, reason=reason, bundle=bundle)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: the model cannot be read ({first_line(error)})") from error


def _load_file(path: Path, model: bytes, session_options: SessionOptions, options: LoadOptions) -> Model:
    if options.precision != "auto":
        raise InputError(f"{path} is one file at one precision: leave precision at 'auto', or load the bundle's folder")
    outline = _outline(model, path, own_session=options.session is not None)
    saturable = bool(INTEGERS & outline.operators) and NARROW_KEY not in outline.metadata
    engine, reason = _engine(model, _contract(outline, path), session_options, options, "a lone file", saturable=saturable)
    return Model(engine, precision="as stored", reason=reason, bundle=None)


def _engine(model: bytes, contract: Contract, session_options: SessionOptions, options: LoadOptions, reason: str, *, saturable: bool) -> tuple[Engine, str]:
    """The engine, and the reason with what the device adds to it."""
    own = options.session
    if own is not None:
        return Engine(model, contract, session_options, lambda data, _: _required(own(data))), f"{reason}; in the caller's own session"
    session_options, reason = with_exact_int8(session_options, reason, saturable=saturable)
    return Engine(model, contract, session_options), reason


def _required(session: Any) -> Any:
    if not all(callable(getattr(session, name, None)) for name in ("run", "get_inputs", "get_outputs")):
        raise InputError(f"session must return an onnxruntime.InferenceSession, got {type(session).__name__}")
    return session


def _evidence(bundle: Bundle) -> dict[str, Any]:
    try:
        return bundle.evidence()
    except FormatError:  # it is no part of what runs
        return {}


def _bounds(model: Model, evidence: Mapping[str, Any], options: LoadOptions) -> RunBounds:
    measured = measured_bytes_per_pixel(evidence, model.precision, model.contract)
    largest = model.contract.largest_batch if options.max_batch is None else min(options.max_batch, model.contract.largest_batch)
    return RunBounds(max_batch=largest, max_memory_mb=options.max_memory_mb, bytes_per_pixel=UNMEASURED if measured is None else measured)


def _outline(model: bytes, path: Path, *, own_session: bool) -> Outline:
    try:
        outline = read_outline(model)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    if outline.external:
        raise BundleError(f"{path}: tensors are kept outside the model file ({outline.external[0][:80]!r}), which edgeport never writes nor reads")
    if outline.fault is not None:
        raise BundleError(f"{path}: the model holds {outline.fault}; edgeport never writes that, so it is refused: export the network again")
    if outline.foreign and not own_session:
        domains = ", ".join(each[:40] for each in outline.foreign)
        raise BundleError(
            f"{path}: the model holds operators of {domains}, and edgeport writes ONNX's own alone; for operators of yours open the session yourself (session=)"
        )
    return outline


def _contract(outline: Outline, path: Path) -> Contract:
    if METADATA_KEY not in outline.metadata:
        raise BundleError(f"{path}: this ONNX file carries no contract, so edgeport did not write it; load it with onnxruntime, or export it with edgeport")
    return Contract.from_json(outline.metadata[METADATA_KEY])
