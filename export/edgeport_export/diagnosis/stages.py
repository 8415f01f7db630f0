"""Where a difference comes from, on the way from an image file to an answer: each stage switched from the original's to edgeport's, one after the other.

    decode        the file's pixels, turned upright      normalize       mean and std
    resize        the way of resizing and cutting        trace           what torch.onnx.export alone makes of the network
    rewrite       edgeport's graph instead of it         optimization    onnxruntime's, on the same graph
    provider      another device                         int8, fp16      another precision

The first answer is the training pipeline's with PyTorch, the last one the bundle's. Each stage's contribution is the distance between the answers before and
after it, so that they lead from one end to the other without a gap. A precision's is its distance from fp32.
"""

import copy
import io
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edgeport_export.network.reference import TorchReference
from edgeport_export.network.size_sweep import random_image
from edgeport_export.network.wrapper import compared_outputs, from_network
from edgeport_export.progress import ProgressCallback, no_progress
from edgeport_export.quantization.output_error import sqnr_db
from edgeport_export.validation.sweep import with_levels
from edgeport_runtime import Bundle, Contract, Example, SessionOptions
from edgeport_runtime.decoding import convert, decode
from edgeport_runtime.device import PROVIDERS, open_session, session_settings
from edgeport_runtime.images import prepare
from edgeport_runtime.installation import onnxruntime
from edgeport_runtime.tasks import find_task

from .graph_ends import normalized
from .pipelines import Pipeline
from .recipes import RecipeComparison, compare_recipe

MOST_IMAGES = 64
MADE_UP = 6  # images, if none are given: JPEG files of waves and grain
MADE_UP_SHARE = 1.7  # of the network's size, so that they are shrunk
Array = NDArray[Any]
Tensors = list[NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage's own contribution. `largest`: largest distance between the answers before and after it, over the answers' range; `rms`: root mean square, over
    their spread. `changed`: labels that change, None if the answers are no labels. `note`: what was switched, or why nothing was."""

    name: str
    largest: float
    rms: float
    changed: int | None
    note: str = ""

    def __str__(self) -> str:
        changed = "-" if self.changed is None else str(self.changed)
        return f"  {self.name:12} {self.largest:>13.1e} {self.rms:>12.1e} {changed:>8}   {self.note}".rstrip()


@dataclass(frozen=True, kw_only=True)
class StageBudget:
    """All stages in their order, and from one end to the other. `recipe`: the contract's preprocessing beside the pipeline's. `images`: number of them.

    True if the recipes agree. What int8 may cost is decided elsewhere; here it is told.
    """

    stages: tuple[Stage, ...]
    total: Stage
    total_db: float
    recipe: RecipeComparison
    images: int

    def __bool__(self) -> bool:
        return bool(self.recipe)

    @property
    def largest(self) -> Stage:
        """The stage that contributes most."""
        return max(self.stages, key=lambda stage: stage.rms)

    def __str__(self) -> str:
        head = f"from {self.images} image files to the answer, stage by stage; {self.largest.name} contributes most"
        columns = f"  {'':12} {'largest/range':>13} {'rms/spread':>12} {'labels':>8}"
        return "\n".join([head, columns, *map(str, self.stages), str(self.total), str(self.recipe)])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        recipe = {"passed": bool(self.recipe), "differences": list(self.recipe.differences), "levels_apart": self.recipe.levels_apart}
        stages = [asdict(each) for each in (*self.stages, self.total)]
        return {"passed": bool(self), "images": self.images, "stages": stages, "total_db": self.total_db, "recipe": recipe}


def stage_budget(
    bundle: Bundle, reference: TorchReference, pipeline: Pipeline, examples: Sequence[Example] = (), progress: ProgressCallback = no_progress
) -> StageBudget:
    """`pipeline`: what the network was trained with. `examples`: images at sizes of their own, files if decoding is to be looked at; made-up JPEG files if
    there are none. Raises ExportError for a contract without an image, or a pipeline that fails; ImageError, NetworkFailure."""
    contract = reference.contract
    pixels = contract.pixels
    sources = [each.source for each in examples[:: max(1, -(-len(examples) // MOST_IMAGES))]] or made_up_files(contract)
    opened, decoded = [_opened(each, pixels.mode) for each in sources], [convert(decode(each), pixels.mode) for each in sources]
    recipe = compare_recipe(pipeline, pixels)
    fitted = recipe.fitted
    prepared = [prepare(each, pixels) for each in sources]
    theirs = [_normalized(each, fitted.pixels.mean, fitted.pixels.std, bgr=fitted.bgr) for each in prepared]
    ours = [_normalized(each, pixels.mean, pixels.std, bgr=False) for each in prepared]
    network = _Torch(reference)
    answers: list[tuple[str, list[Array], str]] = []

    def take(name: str, made: list[Array] | None, note: str = "") -> None:
        progress("stages", len(answers), 9)
        answers.append((name, answers[-1][1] if made is None else made, note))

    answers.append(("", network([pipeline(each) for each in opened]), ""))
    take("decode", network([pipeline(each) for each in decoded]), "PIL's own pixels, then turned upright and in the contract's mode")
    take("resize", network(theirs), f"{pixels.resize}, {pixels.interpolation}, by Pillow")
    take("normalize", network(ours), "mean and std of the contract")
    plain = _plain_trace(reference, ours)
    take("trace", plain, "torch.onnx.export alone" if plain is not None else "left out: torch.onnx.export alone fails on this network")
    fp32 = with_levels(bundle.read(bundle.variant("fp32")), contract)
    take("rewrite", _graph(fp32, contract, optimized=False)(prepared), "edgeport's graph, without onnxruntime's optimization")
    take("optimization", _graph(fp32, contract, optimized=True)(prepared), "the same graph with it")
    exact = answers[-1][1]
    cuda = PROVIDERS["cuda"] in onnxruntime().get_available_providers()
    take("provider", _graph(fp32, contract, optimized=True, device="cuda")(prepared) if cuda else None, "CUDA" if cuda else "there is no other one here")
    lossy = {
        variant.precision: _graph(with_levels(bundle.read(variant), contract), contract, optimized=True)(prepared)
        for variant in bundle.manifest.variants
        if variant.precision != "fp32"
    }
    return _budget(answers, exact, lossy, contract, recipe)


def _budget(
    answers: Sequence[tuple[str, list[Array], str]], exact: list[Array], lossy: Mapping[str, list[Array]], contract: Contract, recipe: RecipeComparison
) -> StageBudget:
    labels, images = find_task(contract.task).answers_are_labels, len(exact)
    stages = [_stage(name, before, after, note, labels=labels) for (_, before, _), (name, after, note) in pairwise(answers)]
    stages += [_stage(precision, exact, after, f"{precision} instead of fp32", labels=labels) for precision, after in lossy.items()]
    first, last = answers[0][1], next(iter(lossy.values()), exact)
    same = all(a.shape == b.shape for a, b in zip(first, last, strict=True))
    decibels = sqnr_db(first, last) if same else float("-inf")
    total = _stage("end to end", first, last, f"{decibels:.1f} dB", labels=labels)
    return StageBudget(stages=tuple(stages), total=total, total_db=decibels, recipe=recipe, images=images)


def _stage(name: str, before: Sequence[Array], after: Sequence[Array], note: str, *, labels: bool) -> Stage:
    if any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
        return Stage(name=name, largest=float("inf"), rms=float("inf"), changed=None, note=f"the answers have other shapes; {note}")
    a, b = (np.concatenate([each.ravel() for each in side]).astype(np.float64) for side in (before, after))
    apart = np.abs(a - b)
    changed = sum(int((x.argmax(axis=1) != y.argmax(axis=1)).sum()) for x, y in zip(before, after, strict=True)) if labels else None
    return Stage(
        name=name,
        largest=float(apart.max(initial=0.0)) / (float(np.ptp(a)) or 1.0),
        rms=float(np.sqrt(np.square(apart).mean())) / (float(a.std()) or 1.0),
        changed=changed,
        note=note,
    )


def made_up_files(contract: Contract) -> list[bytes]:
    """JPEG files of waves and grain, upright and lying, larger than the network's size."""
    pixels, generator, found = contract.pixels, np.random.default_rng(0), []
    for index in range(MADE_UP):
        sides = (MADE_UP_SHARE * pixels.height, MADE_UP_SHARE * (1 + index / MADE_UP) * pixels.width)
        height, width = (round(each) for each in (sides if index % 2 else sides[::-1]))
        file = io.BytesIO()
        Image.fromarray(random_image((1, height, width, 3), generator)[0]).save(file, "JPEG", quality=92)
        found.append(file.getvalue())
    return found


def _opened(source: Any, mode: str) -> Image.Image:
    """As a training script opens it: `Image.open(path).convert("RGB")`, which leaves a photograph lying that the camera noted as upright."""
    if isinstance(source, str | Path):
        return Image.open(source).convert("RGB" if mode == "RGB" else "L")
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source)).convert("RGB" if mode == "RGB" else "L")
    return convert(decode(source), "RGB" if mode == "RGB" else "L")


def _normalized(array: Array, mean: Sequence[float], std: Sequence[float], *, bgr: bool) -> NDArray[np.float32]:
    """Pixels, uint8 (H, W, C), as the network takes them: float32 (C, H, W)."""
    made = normalized(array, mean, std).astype(np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(made[::-1] if bgr else made)


class _Torch:
    """The network in PyTorch on tensors that are normalized already; the first output, before rounding."""

    def __init__(self, reference: TorchReference) -> None:
        self.network, self.output = reference.network, reference.contract.outputs[0]

    def __call__(self, tensors: Tensors) -> list[Array]:
        found = []
        with torch.inference_mode():
            for each in tensors:
                value = self.network(torch.from_numpy(each.copy())[None])
                while not isinstance(value, torch.Tensor):
                    value = next(iter(value.values() if hasattr(value, "values") else value))
                found.append(from_network(value, self.output).numpy())
        return found


def _plain_trace(reference: TorchReference, tensors: Tensors) -> list[Array] | None:
    """The answers of what torch.onnx.export alone makes of the network, run without optimization; None if that fails, as it does for some networks."""
    network, output = copy.deepcopy(reference.network), reference.contract.outputs[0]
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            sizes = {each.shape for each in tensors}
            free = ({2: "height", 3: "width"},) if len(sizes) > 1 else None
            program = torch.onnx.export(network, (torch.from_numpy(tensors[0].copy())[None],), dynamo=True, verbose=False, dynamic_shapes=free)
            path = Path(folder) / "plain.onnx"
            program.save(path, external_data=False)  # type: ignore[union-attr]  # with dynamo there is one
            session = _session(path.read_bytes(), optimized=False, device="cpu")
            name = session.get_inputs()[0].name
            answers = [session.run(None, {name: each[None]})[0] for each in tensors]
    except Exception:  # torch's exporter and onnxruntime raise many kinds
        return None
    return [from_network(torch.from_numpy(each), output).numpy() for each in answers]


def _graph(model: bytes, contract: Contract, *, optimized: bool, device: str = "cpu") -> Callable[[Sequence[Array]], list[Array]]:
    session, name = _session(model, optimized=optimized, device=device), compared_outputs(contract)[0]
    return lambda prepared: [session.run([name], {contract.inputs[0].name: each[None]})[0] for each in prepared]


def _session(model: bytes, *, optimized: bool, device: str) -> Any:
    if optimized:
        return open_session(model, SessionOptions(device=device))
    ort = onnxruntime()
    settings = session_settings(ort, SessionOptions(device=device))
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, settings, providers=[PROVIDERS[device]])
