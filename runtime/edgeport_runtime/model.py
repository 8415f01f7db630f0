"""The model an application holds: images in, predictions out."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from .axes import is_whole
from .bundle import Bundle
from .counters import Counters
from .decoding import ImageSource, in_rgb
from .engine import Arrays, Engine
from .errors import BundleError, EdgeportError, ImageError, InputError
from .image_limits import LIMITS
from .images import are_several, kind_of, pixel_batches, require_size
from .interpretation import RunOutputs
from .memory import RunBounds
from .predictions import Answer
from .tasks import find_task

if TYPE_CHECKING:
    from .batcher import Batcher
    from .check import CheckReport
    from .tiling import TiledModel

PREPARED = 64  # images whose pixels are in memory at once


class Model:
    """A loaded variant. Safe to use from several threads at once, and after a fork. Use it as a context, or `close` it.

    A copy, and a pickle on its way to another process, hold the path, the hash and the options that the model was loaded with, and load it again.

    `precision`, `reason`: the variant that runs, and why it was chosen, and why there. `device`: "cpu" or "cuda". `bounds`: of one run.
    `image_limits`: what images may be.
    """

    def __init__(self, engine: Engine, *, precision: str, reason: str, bundle: Bundle | None, bounds: RunBounds | None = None) -> None:
        self.engine = engine
        self.contract = engine.contract
        self.precision = precision
        self.reason = reason
        self.bundle = bundle
        self.bounds = bounds or RunBounds(max_batch=self.contract.largest_batch)
        self.image_limits = LIMITS
        self.origin: partial[Model] | None = None  # how `load` made it
        self._counters = Counters(("calls", "images", "errors"))
        self._tiled: dict[int, TiledModel] = {}  # what few applications use is imported where it is used

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the sessions with their threads and memory. Calls that are running end as usual; later ones raise DeviceError."""
        self.engine.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.origin is None:
            raise InputError("this model was not made by load, so nothing says how to load it again in a copy or in another process")
        return self.origin, ()

    @property
    def device(self) -> str:
        """Where it runs: "cpu" or "cuda"."""
        return self.engine.options.device

    def __repr__(self) -> str:
        name = "a lone file" if self.bundle is None else f"{self.bundle.manifest.name!r}"
        return f"<Model {name}: {self.contract.task}, {self.precision} on {self.device}, because {self.reason}>"

    def __call__(
        self, source: ImageSource, *, size_px: tuple[int, int] | None = None, tile_px: int | None = None, top: int = 5, channels: str = "rgb"
    ) -> Answer:
        """Predict one image: a path, an open file, bytes, a PIL image, a uint8 array (H, W, C), or what numpy makes one of.

        Returns a Prediction for a classifier, Detections, a Segmentation, an image for a generator, a FloatMap, Values for named numbers and points,
        or an embedding: float32 (channels,).

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
        if not self.contract.takes_one_image:
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
        sizes: dict[str, Any] = {"size_px": size_px, "prepared_at_once": PREPARED, "most": self.bounds.images, "limits": self.image_limits}
        for batch in pixel_batches(images, self.contract, **sizes, faults=faults, channels=channels):
            answers |= zip(batch.indices, self.interpret(self.raw(batch.pixels), batch.sources_px, batch.pixels.shape[1:3], top), strict=True)
        answers |= faults or {}
        return [answers[index] for index in range(len(images))]

    def interpret(self, outputs: Arrays, sources_px: Sequence[tuple[int, int]], network_px: tuple[int, int], top: int = 5) -> list[Answer]:
        """Outputs of `raw` as answers, for whoever runs the graph himself.

        `sources_px`: (height, width) of each source image, upright, before it was fitted. `network_px`: (height, width) of the pixels that were run.
        Raises InputError.
        """
        count = len(next(iter(outputs.values())))
        if len(sources_px) != count or any(len(each) != 2 or min(each) < 1 for each in (*sources_px, network_px)):
            raise InputError(f"expected a (height, width) of each of the {count} images and of the network's input, got {sources_px!r} and {network_px!r}")
        run = RunOutputs(outputs=outputs, contract=self.contract, sources_px=sources_px, network_px=network_px, top=top)
        return find_task(self.contract.task).interpret(run)

    def _in_tiles(self, images: list[ImageSource], tile_px: int, errors: str, channels: str) -> list[Answer | ImageError]:
        from .tiling import TiledModel

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
        return self._counted(self.engine.run, arrays)

    def _counted(self, run: Callable[[Any], dict[str, Any]], inputs: Mapping[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        try:
            outputs = run(inputs)
        except EdgeportError:
            self._counters.add(errors=1)
            raise
        self._counters.observe((time.perf_counter() - start) * 1e3, calls=1, images=_rows(inputs))
        return outputs

    def raw_on_device(self, pixels: Any = None, /, **tensors: Any) -> dict[str, Any]:
        """As `raw`, with outputs that stay on the device, as onnxruntime.OrtValue by name. Inputs: OrtValues, of which nothing is copied, or arrays."""
        first = {} if pixels is None else pixels if isinstance(pixels, Mapping) else {self.contract.inputs[0].name: pixels}
        return self._counted(self.engine.run_bound, {**first, **tensors})

    def warmup(self, batches: Iterable[int] = (1,), sizes_px: Iterable[tuple[int, int]] | None = None) -> None:
        """Run once for each of these batch sizes at each (height, width), so that the first real call is as fast as later ones.

        `sizes_px`: the contract's default size if left out. A card chooses its kernels anew for each size. Raises InputError outside the contract.
        """
        from .timing import example_inputs

        if not isinstance(batches, Iterable) or not isinstance(sizes_px, Iterable | None):
            raise InputError(f"warmup takes batch sizes and pairs (height, width) in lists, got {batches!r} and {sizes_px!r}")
        sizes = [None] if sizes_px is None else list(sizes_px)
        for pair in sizes_px or ():
            _require_pair(pair)
        for batch in batches:
            for size_px in sizes:
                self.engine.run(example_inputs(self.contract, batch=batch, size_px=size_px))

    def placement(self) -> dict[str, int]:
        """How many nodes each provider runs: {"CUDAExecutionProvider": 48, "CPUExecutionProvider": 2}. Raises DeviceError."""
        return self.engine.placement()

    def counters(self) -> dict[str, Any]:
        """Of all runs but warm-ups: "calls", "images", "errors", and "latency_ms", a histogram. `counters.prometheus` writes them as text."""
        return self._counters.snapshot()

    def batcher(self, *, max_batch: int = 16, max_wait_ms: float = 2.0, max_queue: int = 256, deadline_ms: float | None = None, top: int = 5) -> "Batcher":
        """Gathers single images from many threads, or from asyncio, into batches: see Batcher and Limits."""
        from .batcher import Batcher
        from .request_queue import Limits

        return Batcher(self, Limits(max_batch=max_batch, max_wait_ms=max_wait_ms, max_queue=max_queue, deadline_ms=deadline_ms, top=top))

    def check(self) -> "CheckReport":
        """Re-run the golden cases on this machine. Raises BundleError for a lone .onnx file, which carries none."""
        if self.bundle is None:
            raise BundleError("a lone .onnx file carries no golden cases: load the bundle's folder to check it")
        self.engine.require_open()
        from .check import check

        return check(self.bundle, self.precision, self.engine.execution_modes())


def _rows(inputs: Mapping[str, Any]) -> int:
    """How many images a run holds: the first axis of the first input, an array or an OrtValue."""
    shape = next(iter(inputs.values())).shape
    return next(iter(shape() if callable(shape) else shape), 1)


def _require_pair(size_px: Any) -> None:
    if not isinstance(size_px, tuple | list) or len(size_px) != 2 or not all(map(is_whole, size_px)):
        raise InputError(f"size_px must be two whole numbers, (height, width), got {size_px!r}")
