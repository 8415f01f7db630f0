"""The figures of an export as a table and a few lines, from the summary in a bundle's evidence."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from edgeport_runtime import Bundle
from edgeport_runtime.json_text import strict_json
from edgeport_runtime.scorers import format_metric

from . import console

MOST_NAMED = 12  # products that stayed float
COLUMNS = ("quality", "labels changed", "dB from fp32", "bytes", "MiB held", "ms to load", "integer MACs")


def variant_table(summary: Mapping[str, Any], quality: Mapping[str, Any] | None, kept: Collection[str]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: PyTorch's quality, and every variant that was made. `quality`: of the evidence. `kept`: precisions in the bundle."""
    variants: Mapping[str, Mapping[str, Any]] = summary["variants"]
    batches = list(dict.fromkeys(batch for each in variants.values() for batch in each["ms_per_call"]))
    columns = ["variant", *(f"ms at batch {batch}" for batch in batches), *COLUMNS]
    rows = [[name if name in kept else f"({name}, left out)", *_cells(each, batches, _quality(quality, name))] for name, each in variants.items()]
    if quality is not None:
        rows.insert(0, ["PyTorch", *([""] * len(batches)), _quality(quality, "torch"), *([""] * (len(COLUMNS) - 1))])
    return columns, rows


def _cells(figures: Mapping[str, Any], batches: Collection[str], quality: str) -> Iterator[str]:
    for batch in batches:
        spent, speedup = figures["ms_per_call"].get(batch), figures["speedup"].get(batch)
        yield "" if spent is None else f"{spent:.3g}" if speedup == 1 else f"{spent:.3g} ({speedup:.2f}x)"
    yield quality
    yield _text(figures["changed_labels"])
    yield "" if figures["sqnr_db"] is None else f"{figures['sqnr_db']:.1f}"
    yield f"{figures['bytes']:,}"
    yield _text(figures["peak_mib"], ".0f")
    yield _text(figures["load_ms"], ".0f")
    yield _text(figures["integer_share"], ".0%")


def _quality(quality: Mapping[str, Any] | None, engine: str) -> str:
    """The task's metric, and beside a PSNR the structural similarity."""
    if quality is None:
        return ""
    similarity, at_50 = (quality.get(name, {}).get(engine) for name in ("ssim", "at_50"))
    beside = ("" if similarity is None else f", {similarity:.4f} SSIM") + ("" if at_50 is None else f", {at_50:.2%} at 50")
    return format_metric(quality["metric"], quality["values"][engine]) + beside


def _text(value: Any, form: str = "") -> str:
    return "" if value is None else format(value, form)


def summary_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """What runs as integers, what stayed float and why, and every warning."""
    if summary["integer"]:
        counts = " and ".join(f"{each['integer']} of {each['all']} {kind}" for kind, each in summary["integer"].items())
        yield f"int8: {counts} run as integers"
    for step in summary.get("recovery", ()):
        kept = "" if step["taken"] else ", so it was left out"
        yield f"nearer to fp32: {step['name']}: {step['before_db']:.1f} dB before, {step['after_db']:.1f} dB after{kept}"
    for precision, each in summary["variants"].items():
        if (gain := each["split_batch_speedup"]) is not None and gain > 1:
            yield f"{precision}: {gain:.2f} times as fast again in batches if each thread runs images of its own (split_batch)"
        for output, share in each["agreement"].items():
            yield f"{precision}: {share if share == 1 else min(share, 0.999):.1%} of the entries of {output} are fp32's"
    for name, reason in list(summary["kept_float"].items())[:MOST_NAMED]:
        yield f"float in int8: {name}: {reason}"
    if len(summary["kept_float"]) > MOST_NAMED:
        yield f"float in int8: {len(summary['kept_float']) - MOST_NAMED} more, each with its reason under plan.kept_float in manifest.json"
    for warning in summary["warnings"]:
        yield f"warning: {warning}"


def images_line(images: Mapping[str, int]) -> Iterator[str]:
    """How many images did what; nothing if there were none."""
    if images["calibration"] or images["held_out"]:
        judges = f"{images['held_out']} others judged it" if images["held_out"] else "no truth judged it, so its nearness to fp32 did"
        yield f"images: {images['calibration']} of {images['given']} calibrated int8, {judges}"


def show_bundle(bundle: Bundle, as_json: bool) -> None:
    """Print what an export made: a table and a few sentences, or all of its evidence as JSON."""
    evidence, manifest = bundle.evidence(), bundle.manifest
    if as_json:
        print(strict_json({"bundle": str(bundle.folder), "auto": dataclasses.asdict(manifest.auto), **evidence}))
        return
    summary, kept = evidence["summary"], {variant.precision for variant in manifest.variants}
    console.table(*variant_table(summary, evidence["quality"], kept), title=str(bundle.folder))
    parity = evidence["parity"]["fp32"]
    sizes = {tuple(sorted(case["sizes"].items())) for case in parity["cases"]}
    console.say(f"parity: fp32 agrees with PyTorch at {len(sizes)} sizes, the largest difference is {parity['worst']:.1e} of the output's range")
    if "weights" in manifest.provenance:
        console.say(f"weights: {manifest.provenance['weights']}")
    auto = f"auto: {manifest.auto.precision}, because {manifest.auto.reason}"
    for line in (*images_line(evidence["images"]), auto, *summary_lines(summary)):
        console.say(line)
