"""The model an application holds: images in, predictions out."""

import math
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .check import CheckReport, check
from .contract import METADATA_KEY, NARROW_KEY, Contract, is_whole
from .decoding import ImageSource, in_rgb
from .device import SessionOptions, require_onnxruntime
from .engine import Arrays, Engine
from .errors import BundleError, FormatError, ImageError, InputError
from .images import are_several, kind_of, pixel_batches, require_size
from .memory import MEMORY_MB, UNMEASURED, RunBounds, measured_bytes_per_pixel
from .predictions import Answer
from .protobuf import Outline, read_outline
from .selection import choose, require_batch, should_split_batch, with_exact_int8
from .tasks import find_task
from .tiling import TiledModel

PREPARED = 64  # images whose pixels are in memory at once
INTEGERS = {"QuantizeLinear", "DequantizeLinear", "MatMulInteger"}  # operators of int8 variants


class Model:
    """A loaded variant. Safe to use from several threads at once.

    `precision`, `reason`: the variant that runs, and why it was chosen. `bounds`: of one run.
    """

    def __init__(self, engine: Engine, *, precision: str, reason: str, bundle: Bundle | None, bounds: RunBounds | None = None) -> None:
        self.engine = engine
        self.contract = engine.contract
        self.precision = precision
        self.reason = reason
        self.bundle = bundle
        self.bounds = bounds or RunBounds(max_batch=self.contract.largest_batch)
        self._tiled: dict[int, TiledModel] = {}

    def __repr__(self) -> str:
        name = "a lone file" if self.bundle is None else f"{self.bundle.manifest.name!r}"
        return f"<Model {name}: {self.contract.task}, {self.precision} on {self.engine.options.device}, because {self.reason}>"

    def __call__(
        self, source: ImageSource, *, size_px: tuple[int, int] | None = None, tile_px: int | None = None, top: int = 5, channels: str = "rgb"
    ) -> Answer:
        """Predict one image: a path, an open file, bytes, a PIL image, a uint8 array (H, W, C), or what numpy makes one of.

        Returns a Prediction for a classifier, an image for a generator, a Segmentation, or an embedding: float32 (channels,).

        `size_px`: (height, width) to run at instead of the contract's. `tile_px`: see `batch`. `channels`: "bgr" for an array as OpenCV gives it.
        Raises ImageError.
        """
        answer = self.batch([source], size_px=size_px, tile_px=tile_px, top=top, channels=channels)[0]
        assert not isinstance(answer, ImageError)  # errors are raised
        return answer

    @overload
    def batch(
        self,
        sources: Iterable[ImageSource],
        *,
        size_px: tuple[int, int] | None = None,
        tile_px: int | None = None,
        top: int = 5,
        channels: str = "rgb",
        errors: Literal["raise"] = "raise",
    ) -> list[Answer]: ...

    @overload
    def batch(
        self,
        sources: Iterable[ImageSource],
        *,
        size_px: tuple[int, int] | None = None,
        tile_px: int | None = None,
        top: int = 5,
        channels: str = "rgb",
        errors: Literal["return"],
    ) -> list[Answer | ImageError]: ...

    def batch(
        self,
        sources: Iterable[ImageSource],
        *,
        size_px: tuple[int, int] | None = None,
        tile_px: int | None = None,
        top: int = 5,
        channels: str = "rgb",
        errors: str = "raise",
    ) -> Any:
        """Predict several images, grouped by size into the largest runs that the contract and `load`'s bounds allow; answers in the order given.

        `tile_px`: run images at their own size, whatever it is, in overlapping square tiles of that side; for generators and segmentations. The memory of
        a run is a tile's. How far the network looks is measured at first; if that does not fit a tile, InputError says so.
        `errors`: "raise" ends at the first image that cannot be read; "return" puts its ImageError in the place of its answer.
        """
        interpret = find_task(self.contract.task).interpret
        if interpret is None:
            raise InputError("this model takes plain tensors, so there is no image to predict from: use raw() with arrays")
        if not is_whole(top) or top < 1:
            raise InputError(f"top is the number of classes to list, a whole number of at least 1, got {top!r}")
        if not are_several(sources):
            raise InputError(f"batch takes several images, as a list, got {kind_of(sources)}; for one image call the model itself")
        if size_px is not None:
            _require_pair(size_px)
            require_size(size_px, self.contract, "size_px")  # before an image of that size is made
        if channels not in ("rgb", "bgr") or errors not in ("raise", "return"):
            raise InputError(f"channels is 'rgb' or 'bgr', and errors 'raise' or 'return', got {channels!r} and {errors!r}")
        images = list(sources)
        if tile_px is not None:
            if size_px is not None:
                raise InputError("tiles are cut from an image at its own size: leave size_px out, or tile_px")
            return self._in_tiles(images, tile_px, errors, channels)
        faults: dict[int, ImageError] | None = {} if errors == "return" else None
        answers: dict[int, Answer | ImageError] = {}
        sizes: dict[str, Any] = {"size_px": size_px, "prepared_at_once": PREPARED, "most": self.bounds.images}
        for indices, pixels in pixel_batches(images, self.contract, **sizes, faults=faults, channels=channels):
            outputs = self.raw(pixels)[self.contract.outputs[0].name]  # if there are several, the first one answers
            answers |= zip(indices, interpret(outputs, self.contract.labels, top), strict=True)
        answers |= faults or {}
        return [answers[index] for index in range(len(images))]

    def _in_tiles(self, images: list[ImageSource], tile_px: int, errors: str, channels: str) -> list[Answer | ImageError]:
        if tile_px not in self._tiled:
            self._tiled[tile_px] = TiledModel(self, tile_px)
        answers: list[Answer | ImageError] = []
        for image in images:
            try:
                answers.append(self._tiled[tile_px](in_rgb(image, channels)))
            except ImageError as error:
                if errors == "raise":
                    raise
                answers.append(error)
        return answers

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
        return check(self.bundle, self.precision, self.engine.execution_modes())


def _require_pair(size_px: Any) -> None:
    if not isinstance(size_px, tuple | list) or len(size_px) != 2 or not all(map(is_whole, size_px)):
        raise InputError(f"size_px must be two whole numbers, (height, width), got {size_px!r}")


def load(
    path: str | Path,
    *,
    device: str = "cpu",
    precision: str = "auto",
    batch: int = 1,
    threads: int | None = None,
    spinning: bool = True,
    split_batch: bool | None = None,
    max_batch: int | None = None,
    max_memory_mb: float = MEMORY_MB,
) -> Model:
    """Load a bundle, or a lone .onnx file that edgeport wrote.

    `device`: "cpu" or "cuda"; never another one than asked. `precision`: "auto", "fp32", "int8" or "fp16".
    `batch`: the typical number of images per call. With precision="auto", the bundle may prefer int8 only from a certain batch size; the choice
    is made once at load time and used for every call.
    `split_batch`: see SessionOptions; None takes what was faster for such a `batch` when the bundle was made.
    `max_batch`, `max_memory_mb`: bounds of one run of `Model.batch`: images, and memory in MB for intermediate results. What an image takes is known
    from the bundle's evidence, or taken as 512 bytes a pixel; one image runs in any case, and `Model.raw` runs what it is given.
    `threads`, `spinning`: see SessionOptions. Raises BundleError, DeviceError or InputError.
    """
    _require_bounds(max_batch, max_memory_mb)
    if split_batch is not None and not isinstance(split_batch, bool):
        raise InputError(f"split_batch must be True, False, or None for what was measured, got {split_batch!r}")
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path must name a bundle's folder or an .onnx file, got {type(path).__name__}")
    options = SessionOptions(device=device, threads=threads, spinning=spinning, split_batch=split_batch is True)
    path = Path(path)
    if path.suffix == ".onnx":
        model = _load_file(path, options, precision)
        require_batch(batch, model.contract)
        model.bounds = _bounds(model, max_batch, max_memory_mb)
        return model
    bundle = Bundle(path)
    batch = require_batch(batch, bundle.manifest.contract)
    chosen, reason = choose(bundle, device, precision, platform.machine(), batch)
    if split_batch is None:
        options = replace(options, split_batch=should_split_batch(bundle, options, chosen, batch))
    model = _load_variant(bundle, chosen, reason, options)
    if chosen == "fp16" and precision == "auto":
        model = _checked(model, bundle, options)
    model.bounds = _bounds(model, max_batch, max_memory_mb)
    return model


def _require_bounds(max_batch: Any, max_memory_mb: Any) -> None:
    if max_batch is not None and (not is_whole(max_batch) or max_batch < 1):
        raise InputError(f"max_batch is a whole number of images, at least 1, got {max_batch!r}")
    if not isinstance(max_memory_mb, int | float) or not 0 < max_memory_mb < math.inf:
        raise InputError(f"max_memory_mb is a number of MB above 0, got {max_memory_mb!r}")


def _bounds(model: Model, max_batch: int | None, max_memory_mb: float) -> RunBounds:
    try:
        evidence = {} if model.bundle is None else model.bundle.evidence()
    except FormatError:  # evidence is no part of what runs
        evidence = {}
    measured = measured_bytes_per_pixel(evidence, model.precision, model.contract)
    largest = model.contract.largest_batch if max_batch is None else min(max_batch, model.contract.largest_batch)
    return RunBounds(max_batch=largest, max_memory_mb=max_memory_mb, bytes_per_pixel=UNMEASURED if measured is None else measured)


def _checked(model: Model, bundle: Bundle, options: SessionOptions) -> Model:
    """The fp16 model if its golden cases pass on this card, else fp32."""
    report = model.check()
    if not report:
        model.engine.close()
        return _load_variant(bundle, "fp32", f"fp16 does not pass its golden cases on this card: {report}", options)
    model.reason += ", and its golden cases passed on this card"
    return model


def _load_variant(bundle: Bundle, chosen: str, reason: str, options: SessionOptions) -> Model:
    path, variant, contract = bundle.folder, bundle.variant(chosen), bundle.manifest.contract
    require_onnxruntime(variant.onnxruntime, path)
    model = bundle.read(variant)
    if _contract(_outline(model, path), path).to_json() != contract.to_json():
        raise BundleError(f"{path}: the contract inside {variant.file} is not the manifest's; export the bundle again")
    saturable = variant.target is not None and not variant.target.narrow_weights
    options, reason = with_exact_int8(options, reason, saturable=saturable)
    return Model(Engine(model, contract, options), precision=chosen, reason=reason, bundle=bundle)


def _load_file(path: Path, options: SessionOptions, precision: str) -> Model:
    if precision != "auto":
        raise InputError(f"{path} is one file at one precision: leave precision at 'auto', or load the bundle's folder")
    try:
        model = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: the model cannot be read ({error.strerror})") from error
    outline = _outline(model, path)
    saturable = bool(INTEGERS & outline.operators) and NARROW_KEY not in outline.metadata
    options, reason = with_exact_int8(options, "a lone file", saturable=saturable)
    return Model(Engine(model, _contract(outline, path), options), precision="as stored", reason=reason, bundle=None)


def _outline(model: bytes, path: Path) -> Outline:
    try:
        outline = read_outline(model)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    if outline.external:
        raise BundleError(f"{path}: {len(outline.external)} tensors are kept outside the model file, which edgeport never writes nor reads")
    return outline


def _contract(outline: Outline, path: Path) -> Contract:
    if METADATA_KEY not in outline.metadata:
        raise BundleError(f"{path}: this ONNX file carries no contract, so edgeport did not write it; load it with onnxruntime, or export it with edgeport")
    return Contract.from_json(outline.metadata[METADATA_KEY])
