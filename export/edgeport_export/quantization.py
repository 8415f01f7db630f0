"""The int8 variant of an export: calibrated, planned by measurement or replayed from a plan, raced against fp32, and put into words."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeport_runtime import Contract
from edgeport_runtime.device import usable_threads
from edgeport_runtime.engine import Engine, divides
from edgeport_runtime.evaluate import Example

from .calibration import Calibration, calibrate, clipping, fed
from .errors import ExportError, NoIntegerProducts
from .multiplications import integer_nodes, share
from .plan import Plan
from .planning import Outcome, search
from .progress import Watch, counting
from .quality import Jury, drop, trusted
from .quantize import observed_values
from .race import DATA_PARALLEL, Contender, Heat, Stopwatch, race
from .rewrites.nodes import every_node
from .targets import Target
from .trace import finish
from .workshop import Names, Workshop

WORTH_IT = 1.05  # int8 must be this much faster than fp32 to be taken by itself
PROBES = 8  # images on which errors are measured
LEAST_IMAGES = 8  # of calibration, under which int8 is not taken by itself: one black image gives ranges and 999 dB
AUDITED = 32  # held-out images whose activations are looked at for clipping
REASONS = 3  # that are named where nothing can run as integers
HELD_BACK = 5  # of so many calibration images one is held back for that and for the probes, where there are no held-out ones
LEAST_HELD = 4  # of which there must be so many
FURTHEST = 2  # times its own size at which errors are measured, too, where the contract promises such sizes
RACES = 3  # where int8 loses: one process in three ran AttentionNet on one image in 0.25 ms all its life, the others in 0.16
RACE_ROUNDS = 11  # of the race that decides: five were not enough on a shared machine to tell 1.00 from 1.15
PLANNING_BATCH_MS = 80.0  # the search times batches that fp32 takes about this long for


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What int8 may lose: `max_drop` of the jury's metric, or where there is no jury, outputs not nearer to fp32's than `sqnr_floor_db`.

    `seconds`: that the search may take for measuring errors and times together.
    """

    max_drop: float = 0.5
    sqnr_floor_db: float = 30.0
    seconds: float = 120.0


@dataclass(frozen=True, kw_only=True)
class Int8:
    """`model`: the variant's bytes. `heats`: fp32 and int8, at the race's batch and at 1. `audit`: for the evidence."""

    model: bytes
    plan: Plan
    heats: Mapping[int, Mapping[str, Heat]]
    audit: Mapping[str, Any]


def make_int8(
    traced: onnx.ModelProto,
    contract: Contract,
    target: Target,
    calibration: Sequence[Example],
    jury: Jury | None,
    budget: Budget,
    *,
    batch: int,
    replay: Plan | None = None,
    watch: Watch,
) -> Int8:
    """Raises ExportError without calibration images, or where a plan was made for another graph; ImageError for unreadable images;
    NoIntegerProducts.

    The plan comes without its verdict, which needs the final judgement.
    """
    with ExitStack() as stack:
        shop = stack.enter_context(Workshop(traced, contract, replay_target(replay, target)))
        if not shop.possible:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(shop.never.items())[:REASONS])
            raise NoIntegerProducts(f"no product of this network can run as integers{f' ({reasons})' if reasons else ''}, so there is no int8 variant of it")
        if replay is not None:
            plan = _replayed(shop, replay)
            audit: dict[str, Any] = {}
        else:
            plan, audit = _planned(shop, stack, calibration, jury, budget, batch, watch)
        model = finish(shop.variant(plan.integer), contract)
        watch("racing fp32 and int8", 0, 1)
        heats = {size: _heats(shop, model, size) for size in dict.fromkeys((batch, 1))} if shop.target.here else {}
    if replay is None and batch in heats:  # a replayed plan keeps what it brought
        plan = replace(plan, speedup=round(heats[batch]["fp32"].quiet_ms / heats[batch]["int8"].quiet_ms, 3))
    return Int8(model=model, plan=plan, heats=heats, audit=audit)


def unfit(contract: Contract) -> str:
    """Why no int8 variant can be made for this contract, and what to do; empty where one can."""
    if len(contract.inputs) != 1 or contract.inputs[0].pixels is None:
        return "int8 is calibrated with images, so it is made for networks with one image input: leave int8 out with --precision fp32"
    if not any(each.kind == "pixels" or each.dtype.startswith("float") for each in contract.outputs):
        return (
            "every output is integers, on which int8's error cannot be measured: let the network return the numbers that they are made of, or --precision fp32"
        )
    return ""


def calibration_sample(examples: Sequence[Example], most: int, seed: int = 0) -> list[Example]:
    """At most `most` examples, drawn evenly at random, in their own order."""
    if len(examples) <= most:
        return list(examples)
    return [examples[index] for index in sorted(np.random.default_rng(seed).choice(len(examples), most, replace=False))]


def replay_target(replay: Plan | None, asked: Target) -> Target:
    """The target asked for. Raises ExportError where the plan was made for another one."""
    if replay is not None and replay.target != asked.name:
        raise ExportError(f"the int8 plan was made for the target {replay.target}, not {asked.name}: ask for that one, or make a new plan")
    return asked


def _replayed(shop: Workshop, plan: Plan) -> Plan:
    if plan.graph_sha256 != shop.sha256:
        raise ExportError(
            "the int8 plan was made for another graph (other weights, another contract, or other versions of PyTorch and onnxscript): "
            "leave --plan out to make a new one"
        )
    shop.limits = dict(plan.limits)
    return plan


def _planned(
    shop: Workshop, stack: ExitStack, examples: Sequence[Example], jury: Jury | None, budget: Budget, batch: int, watch: Watch
) -> tuple[Plan, dict[str, Any]]:
    if not examples:
        raise ExportError("int8 needs calibration images, and there are none: name data with --calibration, or leave int8 out with --precision fp32")
    seen, unseen = _parts(examples, jury)
    calibrated = calibrate(shop.prepared, observed_values(shop.prepared, shop.target), shop.contract, seen, counting(watch, "calibrating int8", len(seen)))
    fresh = jury is None and bool(unseen)
    probed = _spread(unseen if fresh else seen, PROBES)
    shop.probes = list(fed(shop.contract, probed))
    clock = stack.enter_context(Stopwatch(batch=_planning_batch(shop, batch))) if shop.target.here else None
    outcome = search(shop, calibrated, clock, lambda names: _keeps(shop, names, jury, budget), seconds=budget.seconds, watch=watch)
    limits = {name: pair for name, pair in shop.limits.items() if np.isfinite(pair).all()}
    watch("auditing what clips", 0, 1)
    clipped = clipping(shop.prepared, limits, shop.contract, unseen) if unseen else []
    audit = {"clipped": [asdict(each) for each in clipped] if unseen else None, "clipping_images": len(unseen), "limits": outcome.method}
    plan = _plan(shop, outcome, calibrated, batch)
    elsewhere, agreement = _elsewhere(shop, plan, probed), _shares(shop.agreement(plan.integer))
    return replace(plan, sqnr_elsewhere=elsewhere, agreement=agreement, probes=len(probed), unseen=fresh), audit


def _parts(examples: Sequence[Example], jury: Jury | None) -> tuple[list[Example], list[Example]]:
    """Images to calibrate with, and images to look at afterwards: the jury's, or one of HELD_BACK where there are enough."""
    if jury is not None:
        return list(examples), _spread(jury.examples, AUDITED)
    if len(examples) < HELD_BACK * LEAST_HELD:
        return list(examples), []
    kept = [each for index, each in enumerate(examples) if index % HELD_BACK]
    return kept, _spread(examples[::HELD_BACK], AUDITED)


def _spread(examples: Sequence[Example], most: int) -> list[Example]:
    """At most `most`, evenly taken: folders list one class after the other."""
    return [examples[index] for index in np.linspace(0, len(examples) - 1, min(most, len(examples))).round().astype(int)]


def _elsewhere(shop: Workshop, plan: Plan, examples: Sequence[Example]) -> dict[str, float]:
    """How near int8 stays to fp32 at the ends of the promised heights and widths."""
    contract, pixels = shop.contract, shop.contract.pixels
    sides = [name for name in ("height", "width") if name in contract.axes]
    if not sides or pixels.resize == "keep":
        return {}
    own = {"height": pixels.height, "width": pixels.width}
    smallest = own | {name: contract.axes[name].low for name in sides}
    largest = own | {name: contract.axes[name].nearest(min(contract.axes[name].high, FURTHEST * own[name])) for name in sides}
    found = {}
    for size in (smallest, largest):
        if size != own:
            probes = list(fed(contract, examples, (size["height"], size["width"])))
            found[f"{size['height']}x{size['width']}"] = _rounded(shop.sqnr_db_at(plan.integer, probes))
    return found


def _shares(agreement: Mapping[str, float]) -> dict[str, float]:
    return {name: round(share, 6) for name, share in agreement.items()}


def _rounded(decibels: float) -> float:
    return round(max(-999.0, min(999.0, decibels)), 2)


def _planning_batch(shop: Workshop, batch: int) -> int:
    """As large as the race's, unless fp32 would take too long for dozens of comparisons."""
    with Stopwatch(batch=1, rounds=1) as clock:
        one = clock.compare(shop.file(frozenset()), shop.file(frozenset()))[0]
    return max(1, min(batch, int(PLANNING_BATCH_MS / one)))


def _keeps(shop: Workshop, names: Names, jury: Jury | None, budget: Budget) -> bool:
    if jury is None:
        return shop.sqnr_db(names) >= budget.sqnr_floor_db
    if not trusted(jury.torch, len(shop.contract.outputs), budget.max_drop) and shop.sqnr_db(names) < budget.sqnr_floor_db:
        return False
    engine = Engine(shop.file(names).read_bytes(), shop.contract, shop.target.session)
    return drop(jury.torch, jury.measure(engine)) <= budget.max_drop


def _plan(shop: Workshop, outcome: Outcome, calibrated: Calibration, batch: int) -> Plan:
    integer = outcome.integer or outcome.fastest  # where the budget left nothing, the plan is what somebody gets who insists
    made = shop.file(integer).read_bytes()
    absorbed = integer - {node.name for node in every_node(onnx.load_from_string(made).graph)}  # by the convolution behind it, which is one of them
    running = integer_nodes(made) & set(shop.multiplications) | absorbed if shop.target.here else set(integer)  # kernels of others cannot be asked here
    reasons = {**shop.never, **outcome.reasons}
    unseen = "onnxruntime has no integer kernel for it here"
    return Plan(
        target=shop.target.name,
        formats=shop.target.formats,
        method=outcome.method,
        integer=tuple(name for name in shop.possible if name in integer),
        kept_float={name: unseen if name in integer else reasons.get(name, unseen) for name in shop.multiplications if name not in (running & integer)},
        integer_share=round(share(shop.multiplications, running & integer), 6),
        verdict="",
        auto={},
        limits=shop.limits,
        graph_sha256=shop.sha256,
        calibration_images=calibrated.images,
        calibration_sha256=calibrated.sha256,
        sqnr_db=_rounded(shop.sqnr_db(integer)),
        batch=batch,
        speedup=None,
        findings=outcome.findings(shop.multiplications),
    )


def _heats(shop: Workshop, model: bytes, batch: int) -> dict[str, Heat]:
    """fp32 and int8 side by side, and where the batch divides each of them data-parallel; where int8 loses, again in new processes, and each one's
    faster heat counts, with the data-parallel one that took turns with it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        path.write_bytes(model)
        lanes = {"fp32": Contender(kind="onnx", path=str(shop.file(frozenset()))), "int8": Contender(kind="onnx", path=str(path))}
        found = _race(lanes, shop.contract, batch)
        for _ in range(RACES - 1):
            if found["int8"].quiet_ms <= found["fp32"].quiet_ms:
                break
            again = _race(lanes, shop.contract, batch)
            for name in lanes:
                if again[name].quiet_ms < found[name].quiet_ms:
                    found |= {key: heat for key, heat in again.items() if key in (name, name + DATA_PARALLEL)}
        return found


def _race(lanes: Mapping[str, Contender], contract: Contract, batch: int) -> dict[str, Heat]:
    apart = {name + DATA_PARALLEL: replace(each, data_parallel=True) for name, each in lanes.items()}
    if not divides(contract, batch, usable_threads()):
        return race(lanes, batch=batch, rounds=RACE_ROUNDS)
    try:
        return race({**lanes, **apart}, batch=batch, rounds=RACE_ROUNDS)
    except ExportError:  # twice as many processes may be more than this machine can hold, and nothing depends on the half of them
        return race(lanes, batch=batch, rounds=RACE_ROUNDS)
