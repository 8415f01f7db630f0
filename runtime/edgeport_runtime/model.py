"""The model an application holds: images in, predictions out."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .bundle import Bundle
from .check import CheckReport, check
from .contract import METADATA_KEY, NARROW_KEY, Contract, is_whole
from .device import SessionOptions, require_onnxruntime, usable_threads
from .engine import Arrays, Engine, divides
from .errors import BundleError, FormatError, InputError
from .images import Pixel, Source, describe, prepare, require_size, stack
from .probe import int8_products_are_exact
from .protobuf import read_outline

PRECISIONS = ("auto", "fp32", "int8", "fp16")
INTEGERS = {"QuantizeLinear", "DequantizeLinear", "MatMulInteger"}  # operators of int8 variants
SATURATES = "this CPU's int8 products saturate, so exact ones are used, which are slower"


@dataclass(frozen=True, kw_only=True)
class Label:
    """One class with its probability."""

    label: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a classifier says of one image: the most probable class, and `top` classes in falling order of probability."""

    label: str
    score: float
    top: tuple[Label, ...]


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Which class each position of an image belongs to: `classes` int64 (H, W), indices into `labels` where there are any."""

    classes: NDArray[np.int64]
    labels: tuple[str, ...]


Answer = Prediction | Segmentation | Image.Image | NDArray[np.float32]


class Model:
    """A loaded variant. Safe to use from several threads at once.

    `precision`, `reason`: the variant that runs, and why it was chosen.
    """

    def __init__(self, engine: Engine, *, precision: str, reason: str, bundle: Bundle | None) -> None:
        self.engine = engine
        self.contract = engine.contract
        self.precision = precision
        self.reason = reason
        self.bundle = bundle

    def __call__(self, source: Source, *, size_px: tuple[int, int] | None = None, top: int = 5) -> Answer:
        """Predict one image: a file, bytes, PIL image or uint8 array.

        Returns a Prediction for a classifier, an image for a generator, a Segmentation, or an embedding: float32 (channels,).

        `size_px`: (height, width) to run at instead of the contract's. Raises ImageError.
        """
        return self.batch([source], size_px=size_px, top=top)[0]

    def batch(self, sources: Iterable[Source], *, size_px: tuple[int, int] | None = None, top: int = 5) -> list[Answer]:
        """Predict several images, grouped by size into the largest batches the contract allows; answers in the order given."""
        if self.contract.task == "tensors":
            raise InputError("this model takes plain tensors, so there is no image to predict from: use raw() with arrays")
        if not is_whole(top) or top < 1:
            raise InputError(f"top is how many classes to tell, a whole number of at least 1, got {top!r}")
        if not _several(sources):
            raise InputError(f"batch takes several images, as a list, got {_kind(sources)}; for one image call the model itself")
        arrays = [self._prepare(source, size_px) for source in sources]
        answers: list[Answer | None] = [None] * len(arrays)
        for group in batches([array.shape for array in arrays], self.contract.largest_batch):
            outputs = self.raw(stack([arrays[index] for index in group]))
            for index, answer in zip(group, interpret(self.contract, outputs, top), strict=True):
                answers[index] = answer
        return [answer for answer in answers if answer is not None]

    def raw(self, pixels: "NDArray[Any] | Mapping[str, NDArray[Any]] | None" = None, /, **tensors: NDArray[Any]) -> Arrays:
        """One run of the graph on arrays, without any preprocessing.

        `pixels`: uint8 (N, H, W, C) for a model of one image input; otherwise one keyword for each input, or all of them by name in a mapping.
        Returns every output by name: "logits" float32 (N, classes), or "image" uint8 (N, H, W, C). Raises InputError.
        """
        first = {} if pixels is None else pixels if isinstance(pixels, Mapping) else {self.contract.inputs[0].name: pixels}
        twice = sorted(set(first) & set(tensors))
        if twice:
            raise InputError(f"{twice[0]!r} was given twice, by position and by name")
        given = {**first, **tensors}
        try:
            arrays = {each: np.asarray(value) for each, value in given.items()}
        except ValueError as error:  # lists of unequal lengths
            raise InputError(f"expected arrays, got what numpy makes none of: {error}") from error
        return self.engine.run(arrays)

    def check(self) -> CheckReport:
        """Re-run the golden cases on this machine. Raises BundleError for a lone .onnx file, which carries none."""
        if self.bundle is None:
            raise BundleError("a lone .onnx file carries no golden cases: load the bundle's folder to check it")
        return check(self.bundle, self.precision, self.engine.ways())

    def _prepare(self, source: Source, size_px: tuple[int, int] | None) -> Pixel:
        if size_px is not None:
            _require_pair(size_px)
            require_size(size_px, self.contract, "size_px")  # before an image of that size is made
        array = prepare(source, self.contract.pixels, size_px)
        require_size(array.shape, self.contract, describe(source))
        return array


def batches(shapes: Sequence[tuple[int, ...]], largest: int) -> list[list[int]]:
    """Indices of equal shapes in lists of at most `largest`, in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    return [group[start : start + largest] for group in groups.values() for start in range(0, len(group), largest)]


def _several(sources: Any) -> bool:
    """Whether these are images in a row: no single file, and no array of one image, whose rows would be taken for grey images of their own."""
    if isinstance(sources, np.ndarray):
        return sources.ndim not in (0, 2) and not (sources.ndim == 3 and sources.shape[2] in (1, 3, 4))
    return isinstance(sources, Iterable) and not isinstance(sources, str | bytes | bytearray | Path)


def _kind(sources: Any) -> str:
    return f"an array of shape {sources.shape}" if isinstance(sources, np.ndarray) else f"one {type(sources).__name__}"


def _require_pair(size_px: Any) -> None:
    if not isinstance(size_px, tuple | list) or len(size_px) != 2 or not all(map(is_whole, size_px)):
        raise InputError(f"size_px must be two whole numbers, (height, width), got {size_px!r}")


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponents: NDArray[np.float64] = np.exp(shifted)
    probabilities: NDArray[np.float64] = exponents / exponents.sum(axis=-1, keepdims=True)
    return probabilities


def interpret(contract: Contract, outputs: Arrays, top: int) -> Sequence[Answer]:
    """Turn one batch of raw outputs into what the task promises; where there are several, the first output counts."""
    if contract.task == "classification":
        return [_prediction(row, contract.labels, top) for row in softmax(outputs[contract.outputs[0].name])]
    if contract.task == "segmentation":
        return [Segmentation(classes=row.argmax(axis=0), labels=contract.labels) for row in outputs[contract.outputs[0].name]]
    if contract.task == "embedding":
        return list(outputs[contract.outputs[0].name])
    return [Image.fromarray(row[:, :, 0] if row.shape[2] == 1 else row) for row in outputs[contract.outputs[0].name]]


def _prediction(probabilities: NDArray[np.float64], labels: Sequence[str], top: int) -> Prediction:
    order = np.argsort(-probabilities, kind="stable")[:top]
    ranked = tuple(Label(label=labels[index] if labels else str(index), score=float(probabilities[index])) for index in order)
    return Prediction(label=ranked[0].label, score=ranked[0].score, top=ranked)


def choose(bundle: Bundle, device: str, precision: str, machine: str, batch: int = 1) -> tuple[str, str]:
    """The precision to run, and why. `machine`: as `platform.machine()` names it. `batch`: as many images as most calls bring.

    Raises InputError for an unknown precision, BundleError where the bundle lacks it.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {list(PRECISIONS)}, got {precision!r}")
    if precision != "auto":
        return bundle.variant(precision).precision, "asked for"
    auto = bundle.manifest.auto
    if device == "cuda":
        if any(variant.precision == "fp16" for variant in bundle.manifest.variants):
            return "fp16", "fp16 is the fast precision on CUDA, and its golden cases passed on this card"
        return "fp32", "the bundle has no fp16, and int8 graphs have no integer kernels on CUDA (microsoft/onnxruntime#12229)"
    taken = auto["in_batches"] if "in_batches" in auto and batch >= int(auto["from_batch"]) else auto["precision"]
    made_for = str(bundle.variant(taken).plan.get("target", ""))
    if made_for and machine.startswith(("arm", "aarch64")) != made_for.startswith("arm"):
        return "fp32", f"int8 was made for {made_for}, and this machine is {machine}, where its number formats are slow"
    return bundle.variant(taken).precision, auto["reason"]


def goes_apart(bundle: Bundle, options: SessionOptions, precision: str, batch: int) -> bool:
    """Whether batches of this size and precision were faster with images of its own for each thread when the bundle was made, and divide evenly here."""
    auto = bundle.manifest.auto
    if options.device != "cpu" or precision != auto.get("in_batches", auto["precision"]) or "data_parallel_from" not in auto:
        return False
    return batch >= int(auto["data_parallel_from"]) and divides(bundle.manifest.contract, batch, options.threads or usable_threads())


def load(
    path: str | Path,
    *,
    device: str = "cpu",
    precision: str = "auto",
    batch: int = 1,
    threads: int = 0,
    spinning: bool = True,
    data_parallel: bool | None = None,
) -> Model:
    """Load a bundle, or a lone .onnx file that edgeport wrote.

    `device`: "cpu" or "cuda"; never another one than asked. `precision`: "auto", "fp32", "int8" or "fp16".
    `batch`: as many images as most calls will bring. "auto" goes by it where int8 is faster in batches and slower on one image alone; what is
    taken then runs every call, so that no image is judged by int8 in company and by fp32 alone.
    `data_parallel`: see SessionOptions; None takes what was faster for such a `batch` when the bundle was made.
    `threads`, `spinning`: see SessionOptions. Raises BundleError, DeviceError or InputError.
    """
    if data_parallel is not None and not isinstance(data_parallel, bool):
        raise InputError(f"data_parallel must be True, False, or None for what was measured, got {data_parallel!r}")
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path must name a bundle's folder or an .onnx file, got {type(path).__name__}")
    options = SessionOptions(device=device, threads=threads, spinning=spinning, data_parallel=data_parallel is True)
    path = Path(path)
    if path.suffix == ".onnx":
        model = _load_file(path, options, precision)
        _as_batch(batch, model.contract)
        return model
    bundle = Bundle(path)
    batch = _as_batch(batch, bundle.manifest.contract)
    chosen, reason = choose(bundle, device, precision, platform.machine(), batch)
    if data_parallel is None:
        options = replace(options, data_parallel=goes_apart(bundle, options, chosen, batch))
    model = _load_variant(bundle, chosen, reason, options)
    if chosen == "fp16" and precision == "auto" and not (report := model.check()):
        return _load_variant(bundle, "fp32", f"fp16 does not pass its golden cases on this card: {report}", options)
    return model


def _as_batch(batch: int, contract: Contract) -> int:
    largest = contract.largest_batch
    if not is_whole(batch) or not 1 <= batch <= largest:
        raise InputError(f"batch is how many images most calls bring, a whole number within 1..{largest}, got {batch!r}")
    return int(batch)


def _load_variant(bundle: Bundle, chosen: str, reason: str, options: SessionOptions) -> Model:
    path = bundle.folder
    require_onnxruntime(bundle.variant(chosen).onnxruntime, path)
    model = bundle.read(bundle.variant(chosen))
    written = _contract(model, path)
    if written.to_json() != bundle.manifest.contract.to_json():
        raise BundleError(f"{path}: the contract inside {bundle.variant(chosen).file} is not the manifest's; export the bundle again")
    narrow = bundle.variant(chosen).plan.get("target") == "x86"  # 7-bit weights cannot saturate
    if chosen == "int8" and options.device == "cpu" and not narrow and not int8_products_are_exact():
        options = replace(options, exact_int8=True)
        reason += f"; {SATURATES}"
    return Model(Engine(model, bundle.manifest.contract, options), precision=chosen, reason=reason, bundle=bundle)


def _load_file(path: Path, options: SessionOptions, precision: str) -> Model:
    if precision != "auto":
        raise InputError(f"{path} is one file at one precision: leave precision at 'auto', or load the bundle's folder")
    try:
        model = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: the model cannot be read ({error.strerror})") from error
    contract, reason = _contract(model, path), "a lone file"
    outline = read_outline(model)
    if options.device == "cpu" and INTEGERS & outline.operators and NARROW_KEY not in outline.metadata and not int8_products_are_exact():
        options, reason = replace(options, exact_int8=True), f"{reason}; {SATURATES}"
    return Model(Engine(model, contract, options), precision="as stored", reason=reason, bundle=None)


def _contract(model: bytes, path: Path) -> Contract:
    try:
        outline = read_outline(model)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    if outline.external:
        raise BundleError(f"{path}: {len(outline.external)} tensors are kept outside the model file, which edgeport never writes nor reads")
    if METADATA_KEY not in outline.metadata:
        raise BundleError(f"{path}: this ONNX file carries no contract, so edgeport did not write it; load it with onnxruntime, or export it with edgeport")
    return Contract.from_json(outline.metadata[METADATA_KEY])
