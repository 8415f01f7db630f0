"""The page and the model card. Text from a bundle is escaped by the template engine: a hostile label does nothing, and the page allows no scripts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeport_export.errors import ExportError, OutputError
from edgeport_runtime import Bundle, Example, __version__
from edgeport_runtime.json_text import printable
from edgeport_runtime.regular_files import what_is

from .charts import (
    NEEDS,
    Chart,
    clipping_chart,
    curve_chart,
    order_chart,
    parity_chart,
    plan_chart,
    recovery_chart,
    stages_chart,
    tradeoff_chart,
)
from .commands import commands
from .facts import BundleFacts, Json
from .held_out import HeldOutImages
from .pictures import Row, changed_rows, picture_rows
from .structure import Drawing, structure
from .verification import stage_faults, verified_rows

TEMPLATES = Path(__file__).parent / "templates"
TAGS = {  # Hugging Face's names of tasks
    "classification": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
    "image-to-image": "image-to-image",
    "map": "depth-estimation",
    "embedding": "image-feature-extraction",
}
SPECIAL = "\\`*_{}[]()#+!|<>"  # of Markdown


@dataclass(frozen=True, kw_only=True)
class Part:
    """One bundle on the page."""

    facts: BundleFacts
    folder: str
    tradeoff: Chart | None
    parity: Chart | None
    plan: Chart | None
    order: Chart | None
    curve: Chart | None
    recovery: Chart | None
    clipping: Chart | None
    stages: Chart | None
    changed: Sequence[tuple[str, int, Sequence[dict[str, Any]]]]
    changed_rows: Sequence[Row]
    rows: Sequence[Row]
    structure: Drawing | None
    commands: Sequence[str]

    @property
    def verified(self) -> list[tuple[str, bool]]:
        return verified_rows(self.facts.found)

    @property
    def stage_faults(self) -> list[str]:
        return stage_faults(self.facts.found)

    @property
    def sections(self) -> list[tuple[str, str]]:
        """Id and name of those that it has."""
        facts = self.facts
        found = [("decision", "Decision"), ("variants", "Variants")]
        found += [("parity", "Parity")] if facts.parity else []
        found += [("verified", "Verification")] if "passed" in facts.found else []
        found += [("stages", "Stages")] if facts.stages else []
        found += [("plan", "int8 plan")] if facts.plan else []
        found += [("changed", "Changed labels")] if self.changed else []
        found += [("pictures", "Golden images")] if self.rows else []
        found += [("structure", "Network")] if self.structure else []
        return [*found, ("made", "How it was made")]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A bundle, and what it does not hold itself.

    `guesses`: what may be the held-out images with their truth, as the export was given them; nothing if they are not at hand. `verification`: what
    `edgeport verify --json` printed about it, or a part of that.
    """

    bundle: Bundle
    guesses: Sequence[Sequence[Example]] = ()
    verification: Json = field(default_factory=dict)


def report_page(subjects: Sequence[Subject | Bundle], *, images: bool = True) -> str:
    """One self-contained page of HTML. `images`: whether golden and held-out images are on it, which may be private.

    Raises ExportError without the extra `report`, InputError if held-out images or a verification belong to another bundle.
    """
    parts = [_part(each if isinstance(each, Subject) else Subject(bundle=each), f"b{index}", images=images) for index, each in enumerate(subjects, 1)]
    title = " and ".join(part.facts.name for part in parts)
    css = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    return _rendered("page.html", parts=parts, title=title, css=css, version=__version__)


def model_card(bundle: Bundle) -> str:
    """A README.md in Markdown with Hugging Face's front matter, for whoever publishes the folder. Raises ExportError without the extra `report`."""
    facts = BundleFacts(bundle)
    task = facts.manifest.contract.task
    front = {"library_name": "edgeport", "tags": ["onnx", "onnxruntime", "edgeport", *sorted(each.precision for each in facts.variants if each.kept)]}
    if task in TAGS:
        front["pipeline_tag"] = TAGS[task]
    return _rendered("card.md", facts=facts, front="\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items()))


def write_texts(texts: Mapping[Path, str]) -> list[Path]:
    """Each under a name of its own first; then all are there, or none. Raises OutputError."""
    parts = {out: out.with_name(f".{out.name}.part") for out in texts}
    try:
        for out, text in texts.items():
            if out.exists() and not out.is_file():
                raise OutputError(f"{out} is {what_is(out) or 'no file'}: give the name of a file for the report (out, --out, --card)")
            out.parent.mkdir(parents=True, exist_ok=True)
            parts[out].write_text(text, encoding="utf-8")
        for out, part in parts.items():
            part.replace(out)
    except OSError as error:
        raise OutputError(f"{out}: the report cannot be written ({error.strerror}); give another file (out, --out)") from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return list(texts)


def _part(subject: Subject, key: str, *, images: bool) -> Part:
    facts = BundleFacts(subject.bundle, key, subject.verification)
    held_out = HeldOutImages(facts, subject.guesses) if subject.guesses else None
    return Part(
        facts=facts,
        folder=facts.bundle.folder.name,
        tradeoff=tradeoff_chart(facts),
        parity=parity_chart(facts),
        plan=plan_chart(facts),
        order=order_chart(facts),
        curve=curve_chart(facts),
        recovery=recovery_chart(facts),
        clipping=clipping_chart(facts),
        stages=stages_chart(facts),
        changed=list(_changed(facts)),
        changed_rows=changed_rows(facts, held_out) if images and held_out is not None else (),
        rows=picture_rows(facts, held_out) if images else (),
        structure=structure(facts),
        commands=commands(facts, held_out=held_out is not None),
    )


def _changed(facts: BundleFacts) -> Iterator[tuple[str, int, Sequence[dict[str, Any]]]]:
    """By variant: how many labels it changes, and these images, with labels for classes."""
    for variant in facts.variants:
        rows = facts.changed_images.get(variant.precision, [])
        if variant.changed and rows:
            told = [{"image": each.get("image"), **each, **{key: facts.label(each.get(key)) for key in ("torch", "answer", "truth")}} for each in rows]
            yield variant.precision, variant.changed, told


def _rendered(template: str, **values: Any) -> str:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ExportError(NEEDS) from error
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=template.endswith(".html"), undefined=StrictUndefined, keep_trailing_newline=True, finalize=_visible
    )
    environment.filters |= {"kilobytes": _kilobytes, "shown": _shown, "exponent": _exponent, "sentence": _sentence, "plain": _plain}
    return environment.get_template(template).render(**values)


def _visible(value: Any) -> Any:
    """Characters that turn the direction of writing, or hide, are written out: a label of a bundle may hold them."""
    return printable(value) if type(value) is str else value  # what the template engine has made safe is of another type


def _kilobytes(count: int) -> str:
    return f"{count / 1000:,.1f} kB" if count < 10_000_000 else f"{count / 1e6:,.1f} MB"


def _shown(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:g}{unit}" if isinstance(value, int) else f"{value:.4g}{unit}"


def _exponent(value: float | None) -> str:
    return "not a number" if value is None else "0" if value == 0 else f"{value:.1e}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _plain(text: object) -> str:
    """In Markdown, as it is written: nothing in it makes a heading, a link or a tag."""
    return "".join(f"\\{each}" if each in SPECIAL else each for each in " ".join(str(text).split()))
