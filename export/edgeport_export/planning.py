"""The search for the fastest int8 variant inside the quality budget, by measuring.

1. The kind of limits (minmax, percentile, entropy) whose variant is nearest to the float graph is taken; one calibration serves all.
2. What each product costs in error: the outputs' distance from the float graph's when it alone runs as integers.
3. Everything that can be quantised is. Then kinds of products (depthwise convolutions, narrow ones, matrix products), and after them
   single products, the slowest per multiplication first, are tried in float, and stay so where the whole variant gets faster:
   only the whole shows what a change of format in the middle costs. What looks faster is measured twice before it is believed.
4. Where that is no faster than the float graph, the search starts from there, and tries single products as integers, the largest first.
   Where none pays, the fastest of all these is what somebody gets who insists.
5. Where the quality budget is not kept, the products with the largest errors go back to float until it is.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from edgeport_runtime.device import onnxruntime
from edgeport_runtime.timing import example_inputs

from .calibration import METHODS, Calibration
from .plan import Finding
from .progress import Watch, unwatched
from .rewrites.attention_product import attention_parts
from .workshop import Names, Workshop

MARGIN = 0.98  # of the incumbent's time that a challenger must stay under, twice: less is noise
PATIENCE = 6  # single products in a row that did not pay in float, after which the rest, which are quicker as integers, are not tried
NARROW = 16  # channels in or out under which integer kernels lose their advantage


class Clock(Protocol):
    """Milliseconds per call of two model files, measured in turns."""

    def compare(self, first: Path, second: Path) -> tuple[float, float]: ...


@dataclass(kw_only=True)
class Outcome:
    """`integer`: what the search chose; empty where nothing is left. `fastest`: what it was before the budget was looked at.

    `reasons`: of the others. `slower`, `sqnr_db`: see Finding.
    """

    integer: Names
    fastest: Names = frozenset()
    method: str
    reasons: dict[str, str] = field(default_factory=dict)
    slower: dict[str, float] = field(default_factory=dict)
    sqnr_db: dict[str, float] = field(default_factory=dict)

    def findings(self, multiplications: Mapping[str, int]) -> dict[str, Finding]:
        return {
            name: Finding(multiplications=count, slower=_rounded(self.slower.get(name), 3), sqnr_db=_rounded(self.sqnr_db.get(name), 1))
            for name, count in multiplications.items()
        }


def _rounded(value: float | None, digits: int) -> float | None:
    return round(value, digits) if value is not None and np.isfinite(value) else None


def search(
    shop: Workshop, calibration: Calibration, clock: Clock | None, keeps_budget: Callable[[Names], bool], *, seconds: float, watch: Watch = unwatched
) -> Outcome:
    """Find the plan. `clock`: None where the target is another kind of machine, and then speed decides nothing.

    `keeps_budget`: whether a variant is good enough. `seconds`: for steps 2 and 3, each at most half.
    """
    outcome = Outcome(integer=frozenset(shop.possible), method=_nearest(shop, calibration, watch))
    _errors(shop, outcome, time.monotonic() + seconds / 2, watch)
    if clock is not None:
        _speed(shop, clock, outcome, time.monotonic() + seconds / 2, watch)
        _regrow(shop, clock, outcome, watch)
    outcome.integer = outcome.fastest = outcome.integer or outcome.fastest  # nothing pays: whoever insists gets the fastest of what was tried
    _quality(shop, outcome, keeps_budget, watch)
    return outcome


def _nearest(shop: Workshop, calibration: Calibration, watch: Watch) -> str:
    """Step 1. Leaves the limits in the workshop."""
    found = {}
    for index, method in enumerate(METHODS):
        watch("choosing the limits", index, len(METHODS))
        shop.limits = calibration.limits(method)
        found[method] = shop.sqnr_db(shop.possible)
    best = max(METHODS, key=lambda method: found[method])
    shop.limits = calibration.limits(best)
    return best


def _errors(shop: Workshop, outcome: Outcome, until: float, watch: Watch) -> None:
    """Step 2, the products with the most multiplications first."""
    names = sorted(shop.possible, key=lambda name: -shop.multiplications[name])
    for index, name in enumerate(names):
        if time.monotonic() > until:
            return
        watch("measuring each product's error", index, len(names))
        outcome.sqnr_db[name] = shop.sqnr_db([name])


def _speed(shop: Workshop, clock: Clock, outcome: Outcome, until: float, watch: Watch) -> None:
    """Step 3."""
    refused = tried = 0
    for group in _challenges(shop):
        if time.monotonic() > until or refused >= PATIENCE:
            return
        back = group - outcome.integer  # a single product that went with its kind may come back
        if back and len(group) > 1:
            continue
        tried += 1
        watch("timing products as integers and in float", tried, len(shop.possible))
        challenger = outcome.integer ^ group
        if not challenger:  # somebody may insist on int8, and then one product is the least
            continue
        old, new = _compared(shop, clock, outcome.integer, challenger)
        floats, integers = (old, new) if back else (new, old)
        outcome.slower |= dict.fromkeys(group, floats / integers)
        if new < MARGIN * old:
            outcome.integer = challenger
            what = "it is" if len(group) == 1 else f"these {len(group)} are"
            outcome.reasons |= dict.fromkeys(group, f"time: {what} faster in float, {floats:.3f} against {integers:.3f} ms for the whole variant")
            refused = 0
        elif len(group) == 1:
            refused += 1


def _compared(shop: Workshop, clock: Clock, incumbent: Names, challenger: Names) -> tuple[float, float]:
    """Milliseconds of both. What seems faster is looked at again, and that counts: over many comparisons some are faster by luck."""
    old, new = clock.compare(shop.file(incumbent), shop.file(challenger))
    return clock.compare(shop.file(incumbent), shop.file(challenger)) if new < MARGIN * old else (old, new)


def _regrow(shop: Workshop, clock: Clock, outcome: Outcome, watch: Watch) -> None:
    """Step 4."""
    none: Names = frozenset()
    if outcome.integer:
        floats, integers = clock.compare(shop.file(none), shop.file(outcome.integer))
        if integers < MARGIN * floats:
            return
    whole, outcome.integer, refused = outcome.integer, none, 0
    outcome.fastest, least = whole, (integers / floats if whole else float("inf"))
    for index, name in enumerate(sorted(shop.possible, key=lambda each: -shop.multiplications[each])):
        if refused >= PATIENCE:
            break
        watch("looking for products that pay by themselves", index, len(shop.possible))
        grown = outcome.integer | {name}
        old, new = _compared(shop, clock, outcome.integer, grown)
        outcome.slower[name] = old / new
        if new < MARGIN * old:
            outcome.integer, refused = grown, 0
        else:
            refused += 1
            if not outcome.integer and new / old < least:  # one product by itself
                outcome.fastest, least = grown, new / old
            outcome.reasons[name] = f"time: float takes {old:.3f} ms, as integers {new:.3f} ms for the whole variant"
    outcome.reasons |= dict.fromkeys(whole - outcome.integer - set(outcome.reasons), "time: the variant that has it as integers is slower than fp32")


def _challenges(shop: Workshop) -> Iterator[Names]:
    """Kinds of products, then each by itself, by falling time per multiplication."""
    kinds: dict[str, set[str]] = {}
    for name in shop.possible:
        for kind in _kinds(shop, name):
            kinds.setdefault(kind, set()).add(name)
    yield from (frozenset(names) for names in kinds.values() if len(names) > 1)
    spent = profile(shop.file(frozenset(shop.possible)), shop)
    yield from (frozenset([name]) for name in sorted(shop.possible, key=lambda name: -spent.get(name, 0.0) / max(1, shop.multiplications[name])))


def _kinds(shop: Workshop, name: str) -> Iterator[str]:
    node = shop.nodes[name]
    if node.op_type != "Conv":
        yield "attention's products" if attention_parts(shop.prepared.graph, node) is not None else "matrix products"
        return
    group = next((each.i for each in node.attribute if each.name == "group"), 1)
    dims = next(each.dims for each in shop.prepared.graph.initializer if each.name == node.input[1])
    if group > 1:
        yield "grouped convolutions"
    elif min(dims[0], dims[1]) < NARROW:
        yield "narrow convolutions"


def profile(path: Path, shop: Workshop) -> dict[str, float]:
    """Microseconds of every product of the variant as onnxruntime runs it here, by its name in the float graph."""
    ort = onnxruntime()
    settings = ort.SessionOptions()
    settings.enable_profiling, settings.log_severity_level = True, 3
    settings.profile_file_prefix = str(path.with_suffix(""))
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    inputs = example_inputs(shop.contract, batch=1)
    for _ in range(5):
        session.run(None, inputs)
    written = Path(session.end_profiling())
    spent: dict[str, list[float]] = {}
    for event in json.loads(written.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            # fused nodes carry their name with a token behind it: "layer1.0.conv1/Conv_token_4"
            spent.setdefault(event["name"].removesuffix("_kernel_time").split("_token_")[0], []).append(event["dur"])
    written.unlink()
    return {name: float(np.median(times)) for name, times in spent.items()}


def _quality(shop: Workshop, outcome: Outcome, keeps_budget: Callable[[Names], bool], watch: Watch) -> None:
    """Step 5: as few of the worst as it takes, found by doubling their number and halving the last step."""
    worst = sorted(outcome.integer, key=lambda name: outcome.sqnr_db.get(name, float("inf")))

    def keeps(without: int) -> bool:
        watch("judging int8", without, len(worst))
        return without == len(worst) or keeps_budget(frozenset(worst[without:]))

    fails, kept = -1, 0
    while not keeps(kept):
        fails, kept = kept, min(len(worst), 2 * kept + 1)
    while kept - fails > 1:
        middle = (fails + kept) // 2
        fails, kept = (fails, middle) if keeps(middle) else (middle, kept)
    for name in worst[:kept]:
        error = outcome.sqnr_db.get(name)
        figure = f": alone it brings the outputs to {error:.1f} dB of fp32's" if error is not None else ""
        outcome.reasons[name] = f"error{figure}, and the quality budget was not kept"
    outcome.integer = frozenset(worst[kept:])
    outcome.reasons = {name: reason for name, reason in outcome.reasons.items() if name not in outcome.integer}
