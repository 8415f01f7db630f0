"""The images of golden cases with what PyTorch and each variant answered, as the bundle holds them: nothing is run."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeport_runtime.drawing import drawn
from edgeport_runtime.images import prepare_target
from edgeport_runtime.interpretation import RunOutputs
from edgeport_runtime.manifest import GoldenCase
from edgeport_runtime.predictions import Prediction
from edgeport_runtime.tasks import find_task

from .facts import BundleFacts
from .held_out import HeldOutImages

MOST_IMAGES = 8
LONGEST_PX, SHORTEST_PX = 320, 96  # of a picture's longer side
DIFFERENCE = 8  # times that differences of levels are made larger, or nobody would see them


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture in a row. `data`: a data URI; empty if the answer is words alone."""

    title: str
    words: str
    data: str = ""
    alt: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image: itself, and the answers. `name`: of its case."""

    name: str
    panels: tuple[Panel, ...]


def picture_rows(facts: BundleFacts, held_out: HeldOutImages | None = None) -> list[Row]:
    """At most MOST_IMAGES, of stored cases of models that take one image; with their truth if the held-out images are at hand."""
    contract = facts.manifest.contract
    if not contract.takes_one_image:
        return []
    rows: list[Row] = []
    for case in facts.manifest.golden:
        if case.sizes is not None or case.every != 1:
            continue
        pixels = facts.bundle.tensor(case.inputs[0])
        answers = _answers(facts, case, pixels.shape[1:3])
        for index in range(len(pixels)):
            if len(rows) < MOST_IMAGES:
                row = _row(f"{case.folder}, image {index + 1}", pixels[index], {name: each[index] for name, each in answers.items()})
                truth = None if held_out is None else held_out.truth_of(pixels[index])
                rows.append(row if truth is None else replace(row, panels=(*row.panels, *_truth(truth, facts, answers["PyTorch"][index], row.name))))
    return rows


def changed_rows(facts: BundleFacts, held_out: HeldOutImages) -> list[Row]:
    """The images whose label a variant changes, at most MOST_IMAGES of each, those of which PyTorch was surest first."""
    rows = []
    for precision, listed in facts.changed_images.items():
        pictures = [(each, pixels) for each in listed[:MOST_IMAGES] if (pixels := held_out.of_row(each)) is not None]
        panels = []
        for each, pixels in pictures:
            torch, answer, truth = (facts.label(each.get(key)) for key in ("torch", "answer", "truth"))
            words = f"PyTorch: {torch}\n{precision}: {answer}" + (f"\ntruth: {truth}" if truth else "")
            title = f"image {each['image']}"
            panels.append(Panel(title=title, words=words, data=_uri(_image(pixels)), alt=f"{title}, whose label {precision} changes from {torch} to {answer}"))
        rows += [Row(name=f"As the network sees them: PyTorch and {precision}", panels=tuple(panels))] if panels else []
    return rows


def _truth(truth: Any, facts: BundleFacts, answer: Any, name: str) -> list[Panel]:
    """The label in words, or the image that the answer should be; of other truths nothing is drawn."""
    contract = facts.manifest.contract
    kind = find_task(contract.task).truth
    if kind == "label":
        return [Panel(title="truth", words=facts.label(int(truth)))]
    if kind != "image" or not isinstance(answer, Image.Image):
        return []
    channels = len(answer.getbands())
    clean = prepare_target(truth, contract.pixels, (answer.height, answer.width, channels))
    return [Panel(title="clean", words="", data=_uri(_image(clean)), alt=f"what {name} should become")]


def _answers(facts: BundleFacts, case: GoldenCase, size_px: tuple[int, ...]) -> dict[str, list[Any]]:
    """By engine, for each image."""
    contract = facts.manifest.contract
    task = find_task(contract.task)
    files = {"PyTorch": case.outputs, **{each.precision: case.host[each.precision] for each in facts.manifest.variants}}
    found: dict[str, list[Any]] = {}
    for name, listed in files.items():
        outputs = {output.name: facts.bundle.tensor(file) for output, file in zip(contract.outputs, listed, strict=True)}
        count, size = len(next(iter(outputs.values()))), (int(size_px[0]), int(size_px[1]))
        found[name] = list(task.interpret(RunOutputs(outputs=outputs, contract=contract, sources_px=[size] * count, network_px=size, top=3)))
    return found


def _row(name: str, pixels: NDArray[Any], answers: Mapping[str, Any]) -> Row:
    image = _image(pixels)
    panels = [Panel(title="input", words=f"{image.height}x{image.width}", data=_uri(image), alt=f"the input of {name}")]
    first = answers.get("PyTorch")
    for engine, answer in answers.items():
        panels.append(_panel(engine, answer, image, name))
        if isinstance(answer, Image.Image) and isinstance(first, Image.Image) and engine != "PyTorch":
            panels.append(_difference(engine, answer, first, name))
    return Row(name=name, panels=tuple(panels))


def _image(pixels: NDArray[Any]) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _panel(engine: str, answer: Any, image: Image.Image, name: str) -> Panel:
    if isinstance(answer, Prediction):
        return Panel(title=engine, words="\n".join(f"{each.label} {each.score:.3f}" for each in answer.top))
    if isinstance(answer, Image.Image):
        return Panel(title=engine, words="", data=_uri(answer), alt=f"{engine}'s image for {name}")
    return Panel(title=engine, words="", data=_uri(drawn(answer, image)), alt=f"{engine}'s answer for {name}, drawn over the image")


def _difference(engine: str, answer: Image.Image, first: Image.Image, name: str) -> Panel:
    """Gray is no difference."""
    levels = np.asarray(answer, np.int16) - np.asarray(first, np.int16)
    shown = Image.fromarray(np.clip(128 + DIFFERENCE * levels, 0, 255).astype(np.uint8))
    words = f"at most {int(np.abs(levels).max())} levels, {float(np.abs(levels).mean()):.2f} on average; shown {DIFFERENCE} times as large"
    return Panel(title=f"{engine} - PyTorch", words=words, data=_uri(shown), alt=f"where {engine} differs from PyTorch for {name}")


def _uri(image: Image.Image) -> str:
    """As PNG if it is small, whose pixels are then seen as they are, else as JPEG."""
    longest = max(image.size)
    if longest > LONGEST_PX:
        image = image.resize((max(1, image.width * LONGEST_PX // longest), max(1, image.height * LONGEST_PX // longest)), Image.Resampling.LANCZOS)
    elif longest < SHORTEST_PX:
        scale = -(-SHORTEST_PX // longest)
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    form = "PNG" if longest <= SHORTEST_PX else "JPEG"
    (image if image.mode in ("RGB", "L") else image.convert("RGB")).save(buffer, form, **({"quality": 85} if form == "JPEG" else {"optimize": True}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
