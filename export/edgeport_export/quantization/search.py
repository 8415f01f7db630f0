"""The search for the fastest int8 variant, by measuring.

1. The error of each product is measured: the outputs' distance from the float graph's if it alone runs as integers.
2. Everything that can be quantized is. Then kinds of products (depthwise convolutions, narrow ones, matrix products), and after them
   single products, the slowest per MAC first, are tried in float. They stay so if the whole variant gets faster: only the whole shows what a
   change of format in the middle costs. What looks faster is measured twice before it is believed. What no number of turns decides stays as it is
   believed to be before anything is measured: integers are faster.
3. If that is no faster than the float graph, the search starts from there, and tries single products as integers, the largest first.
   If none pays, the fastest of all these is kept for a user who wants int8 in any case.

What the quality budget takes back comes after that, in `plan_walk`.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from edgeport_export.benchmark.runner import PairTimes
from edgeport_export.progress import ProgressCallback, no_progress
from edgeport_export.rewrites.int8_graph.attention_product import attention_parts
from edgeport_export.rewrites.nodes import attributes
from edgeport_runtime.device import SessionOptions, session_settings
from edgeport_runtime.installation import onnxruntime
from edgeport_runtime.timing import example_inputs

from .macs import unfused_name
from .plan import Finding
from .variants import Names, QuantizableGraph, VariantBuilder

MARGIN = 0.98  # of the incumbent's time that a challenger must stay under, twice: less is noise
PATIENCE = 6  # single products in a row that did not pay in float, after which the rest, which are quicker as integers, are not tried
NARROW = 16  # channels in or out under which integer kernels lose their advantage
PROFILED_CALLS = 5
NONE: Names = frozenset()


class Timer(Protocol):
    """Milliseconds per call of two model files, measured in turns until it is decided whether the second takes less than `bar` times as long."""

    def compare(self, first: Path, second: Path, bar: float = 1.0) -> PairTimes: ...


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """`integer`: products to quantize; empty if the budget leaves none. `fastest`: the same set before the budget removed any.

    `reasons`: why each other product stays in float. `speedups`, `sqnr_db`: see `Finding`, by product, as far as the search got. `undecided`: products of
    which no number of turns could tell whether they are faster as integers.
    """

    integer: Names
    fastest: Names
    reasons: Mapping[str, str] = field(default_factory=dict)
    speedups: Mapping[str, float] = field(default_factory=dict)
    sqnr_db: Mapping[str, float] = field(default_factory=dict)
    undecided: frozenset[str] = frozenset()

    def findings(self, macs: Mapping[str, int]) -> dict[str, Finding]:
        """What was measured about every product."""
        return {
            name: Finding(macs=count, speedup=rounded(self.speedups.get(name), 3), sqnr_db=rounded(self.sqnr_db.get(name), 1)) for name, count in macs.items()
        }


def rounded(value: float | None, digits: int) -> float | None:
    """For JSON, which has no infinity."""
    return round(value, digits) if value is not None and np.isfinite(value) else None


def search(builder: VariantBuilder, timer: Timer | None, *, seconds: float, progress: ProgressCallback = no_progress) -> SearchResult:
    """All steps. `timer`: None if the target is another kind of machine, and then speed decides nothing.

    `seconds`: for steps 1 and 2, half for each at most.
    """
    errors_db = _errors_alone(builder, time.monotonic() + seconds / 2, progress)
    result = SearchResult(integer=frozenset(builder.graph.quantizable), fastest=NONE, sqnr_db=errors_db)
    if timer is not None:
        result = _slow_ones_float(builder, timer, result, time.monotonic() + seconds / 2, progress)
        result = _grown_from_float(builder, timer, result, progress)
    chosen = result.integer or result.fastest
    reasons = {name: reason for name, reason in result.reasons.items() if name not in chosen}
    return _changed(result, integer=chosen, fastest=chosen, reasons=reasons)


def _changed(result: SearchResult, **changes: object) -> SearchResult:
    return SearchResult(**{**vars(result), **changes})


def _errors_alone(builder: VariantBuilder, until: float, progress: ProgressCallback) -> dict[str, float]:
    """Step 1, the products with the most MACs first."""
    found = {}
    names = _by_macs(builder.graph)
    for index, name in enumerate(names):
        if time.monotonic() > until:
            break
        progress("measuring each product's error", index, len(names))
        found[name] = builder.sqnr_db(frozenset([name]))
    return found


def _by_macs(graph: QuantizableGraph) -> list[str]:
    return sorted(graph.quantizable, key=lambda name: -graph.macs[name])


def _slow_ones_float(builder: VariantBuilder, timer: Timer, result: SearchResult, until: float, progress: ProgressCallback) -> SearchResult:
    """Step 2."""
    integer, reasons, speedups = result.integer, dict(result.reasons), dict(result.speedups)
    undecided, refused, tried = result.undecided, 0, 0
    for group in _challenges(builder):
        if time.monotonic() > until or refused >= PATIENCE:
            break
        back = group - integer  # a single product that went with its kind may come back
        if back and len(group) > 1:
            continue
        tried += 1
        progress("timing products as integers and in float", tried, len(builder.graph.quantizable))
        challenger = integer ^ group
        if not challenger:  # the user may want int8 in any case, and then one product is the least
            continue
        times = _compared(builder, timer, integer, challenger)
        float_ms, integer_ms = (times.first_ms, times.second_ms) if back else (times.second_ms, times.first_ms)
        speedups |= dict.fromkeys(group, float_ms / integer_ms)
        undecided = undecided - group if times.decides(MARGIN) else undecided | group
        if times.high < MARGIN or (back and not times.decides(MARGIN)):  # integers are believed to be faster
            integer, refused = challenger, 0
            what = "it is" if len(group) == 1 else f"these {len(group)} are"
            reasons |= dict.fromkeys(group, f"time: {what} faster in float, {float_ms:.3f} against {integer_ms:.3f} ms for the whole variant")
        elif len(group) == 1:
            refused += 1
    return _changed(result, integer=integer, reasons=reasons, speedups=speedups, undecided=undecided)


def _compared(builder: VariantBuilder, timer: Timer, incumbent: Names, challenger: Names) -> PairTimes:
    """Both. A challenger that seems faster is timed again, and that counts: over many comparisons some are faster by luck."""
    times = timer.compare(builder.file(incumbent), builder.file(challenger), MARGIN)
    return timer.compare(builder.file(incumbent), builder.file(challenger), MARGIN) if times.high < MARGIN else times


def _grown_from_float(builder: VariantBuilder, timer: Timer, result: SearchResult, progress: ProgressCallback) -> SearchResult:
    """Step 3."""
    whole, least = result.integer, float("inf")  # `least`: the smallest time over the float graph's
    if whole:
        times = timer.compare(builder.file(NONE), builder.file(whole), MARGIN)
        if times.high < MARGIN or not times.decides(MARGIN):
            return result
        least = times.second_ms / times.first_ms
    integer, fastest, refused = NONE, whole, 0
    reasons, speedups = dict(result.reasons), dict(result.speedups)
    for index, name in enumerate(_by_macs(builder.graph)):
        if refused >= PATIENCE:
            break
        progress("looking for products that pay by themselves", index, len(builder.graph.quantizable))
        times = _compared(builder, timer, integer, integer | {name})
        old, new = times.first_ms, times.second_ms
        speedups[name] = old / new
        if times.high < MARGIN:
            integer, refused = integer | {name}, 0
            continue
        refused += 1
        if not integer and new / old < least:  # one product by itself
            fastest, least = frozenset([name]), new / old
        reasons[name] = f"time: float takes {old:.3f} ms, as integers {new:.3f} ms for the whole variant"
    reasons |= dict.fromkeys(whole - integer - set(reasons), "time: the variant that has it as integers is slower than fp32")
    return _changed(result, integer=integer, fastest=fastest, reasons=reasons, speedups=speedups)


def _challenges(builder: VariantBuilder) -> Iterator[Names]:
    """Kinds of products, then each by itself, by falling time per MAC."""
    graph = builder.graph
    kinds: dict[str, set[str]] = {}
    for name in graph.quantizable:
        for kind in _kinds(graph, name):
            kinds.setdefault(kind, set()).add(name)
    yield from (frozenset(names) for names in kinds.values() if len(names) > 1)
    spent_us = profile(builder.file(frozenset(graph.quantizable)), graph)
    yield from (frozenset([name]) for name in sorted(graph.quantizable, key=lambda name: -spent_us.get(name, 0.0) / max(1, graph.macs[name])))


def _kinds(graph: QuantizableGraph, name: str) -> Iterator[str]:
    node = next(each for each in graph.editor.nodes if each.name == name)
    if node.op_type != "Conv":
        yield "attention's products" if attention_parts(graph.editor, node) is not None else "matrix products"
        return
    dims = graph.editor.constants[node.input[1]].dims
    if attributes(node).get("group", 1) > 1:
        yield "grouped convolutions"
    elif min(dims[0], dims[1]) < NARROW:
        yield "narrow convolutions"


def profile(path: Path, graph: QuantizableGraph) -> dict[str, float]:
    """Microseconds of every product of the variant as onnxruntime runs it here, by its name in the float graph."""
    ort = onnxruntime()
    settings = session_settings(ort, SessionOptions())
    settings.enable_profiling = True
    settings.profile_file_prefix = str(path.with_suffix(""))
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    inputs = example_inputs(graph.contract, batch=1)
    for _ in range(PROFILED_CALLS):
        session.run(None, inputs)
    written = Path(session.end_profiling())
    spent_us: dict[str, list[float]] = {}
    for event in json.loads(written.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent_us.setdefault(unfused_name(event["name"].removesuffix("_kernel_time")), []).append(event["dur"])
    written.unlink()
    return {name: float(np.median(times)) for name, times in spent_us.items()}
