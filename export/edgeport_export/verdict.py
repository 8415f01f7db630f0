"""What int8 turned out to be, in one sentence with its figures, and whether `precision="auto"` takes it."""

import statistics
from collections.abc import Mapping

from .plan import Plan
from .quality import Judgement, blind, trusted, unit
from .quantization import LEAST_IMAGES, WORTH_IT, Budget
from .race import DATA_PARALLEL, Heat, disturbance

SLOWER = 1.02  # as long, on one image alone: batches can have int8 by itself, so that nobody need pay for them
WORTH_APART = 1.02  # times as fast: below that the working set of a second image may cost on the next machine what this one gains


def decide(plan: Plan, heats: Mapping[int, Mapping[str, Heat]], sizes: Mapping[str, int], judgement: Judgement | None, budget: Budget) -> dict[str, str]:
    """What `precision="auto"` takes, and why: "precision", "reason"; where int8 pays in batches but not on one image alone, "in_batches" and
    "from_batch"; where what batches take is faster data-parallel, "data_parallel_from". Both are the batch for which it was measured. See `pays`,
    `verdict`."""
    words = verdict(plan, heats, sizes, judgement, budget)
    in_batches = "int8" if pays(plan, judgement, budget) else "fp32"
    apart = {"data_parallel_from": str(plan.batch)} if _gain_apart(plan, heats, in_batches) >= WORTH_APART else {}
    if in_batches == "int8" and _slower_alone(heats):
        return {"precision": "fp32", "reason": words, "in_batches": "int8", "from_batch": str(plan.batch), **apart}
    return {"precision": in_batches, "reason": words, **apart}


def takes_int8(auto: Mapping[str, str]) -> bool:
    """Whether "auto" takes int8, be it in batches alone."""
    return "int8" in (auto["precision"], auto.get("in_batches"))


def pays(plan: Plan, judgement: Judgement | None, budget: Budget) -> bool:
    """Whether int8 is faster than fp32 by enough, in batches, and inside the budget."""
    if plan.speedup is None or plan.speedup < WORTH_IT:
        return False
    if plan.calibration_images < LEAST_IMAGES or not _near_enough(plan, judgement, budget):
        return False
    return judgement is None or judgement.drop("int8") <= budget.max_drop


def _slower_alone(heats: Mapping[int, Mapping[str, Heat]]) -> bool:
    return 1 in heats and heats[1]["int8"].quiet_ms > SLOWER * heats[1]["fp32"].quiet_ms


def _gain_apart(plan: Plan, heats: Mapping[int, Mapping[str, Heat]], precision: str) -> float:
    """How many times as fast batches are where each thread runs images of its own; 1 where that was not measured.

    The median over rounds: both take their turns side by side, and a few percent drown in what a shared machine drifts between rounds.
    """
    raced = heats.get(plan.batch, {})
    apart = raced.get(precision + DATA_PARALLEL)
    if apart is None:
        return 1.0
    return statistics.median(together / alone for together, alone in zip(raced[precision].rounds_ms, apart.rounds_ms, strict=True))


def _near_enough(plan: Plan, judgement: Judgement | None, budget: Budget) -> bool:
    """Where nothing better judges int8, its outputs must be near fp32's at the contract's own size. Of other sizes the words tell."""
    if judgement is not None and trusted(judgement.qualities["torch"], judgement.outputs, budget.max_drop):
        return True
    return plan.sqnr_db >= budget.sqnr_floor_db


def verdict(plan: Plan, heats: Mapping[int, Mapping[str, Heat]], sizes: Mapping[str, int], judgement: Judgement | None, budget: Budget) -> str:
    """One paragraph: what runs as integers, speed, size, load time, memory, quality; and the decision."""
    said = [_integers(plan), *_speed(plan, heats), _file(sizes)]
    said += _quality(plan, judgement, budget)
    taken = "int8 is taken"
    if _slower_alone(heats):
        taken += f" for batches of {plan.batch} and more, where `batch` asks for them, and fp32 for less, because int8 is slower on one image alone"
    return f"{taken if pays(plan, judgement, budget) else _why_not(plan, judgement, budget)}: {'; '.join(said)}"


def _file(sizes: Mapping[str, int]) -> str:
    ratio = sizes["fp32"] / sizes["int8"]
    return f"the file is {ratio:.2f} times smaller" if ratio >= 1 else f"the file is {1 / ratio:.2f} times larger"


def _integers(plan: Plan) -> str:
    found = plan.findings
    convolutions = [name for name in found if name.rpartition("/")[2].startswith("Conv")]  # "layer1.0.conv1/Conv", or "Conv_2" of the network itself
    products = [name for name in found if name not in convolutions]
    kinds = [f"{sum(name not in plan.kept_float for name in names)} of {len(names)} {what}" for names, what in _kinds(convolutions, products) if names]
    return f"{' and '.join(kinds)} run as integers, {plan.integer_share:.0%} of the multiplications"


def _kinds(convolutions: list[str], products: list[str]) -> list[tuple[list[str], str]]:
    return [(convolutions, "convolutions"), (products, "matrix products")]


def _speed(plan: Plan, heats: Mapping[int, Mapping[str, Heat]]) -> list[str]:
    if not heats:
        return [f"neither its kernels nor its speed could be looked at, because this machine is no {plan.target}"]
    said = []
    for batch, each in heats.items():
        fp32, int8 = each["fp32"], each["int8"]
        ratio = fp32.quiet_ms / int8.quiet_ms
        said.append(f"{ratio:.2f} times as fast as fp32 at batch {batch} ({int8.quiet_ms:.3g} against {fp32.quiet_ms:.3g} ms)")
    for name in ("int8", "fp32"):
        if (gain := _gain_apart(plan, heats, name)) >= WORTH_APART:
            said.append(f"{name} is {gain:.2f} times as fast again at batch {plan.batch} where each thread runs images of its own")
    fp32, int8 = (heats[plan.batch if plan.batch in heats else min(heats)][name] for name in ("fp32", "int8"))
    said.append(f"loads in {int8.load_ms:.0f} ms against {fp32.load_ms:.0f}")
    said.append(f"its process held at most {int8.peak_bytes / 2**20:.0f} MiB against {fp32.peak_bytes / 2**20:.0f}")
    busy = disturbance(heat for each in heats.values() for heat in each.values())
    return [busy, *said] if busy else said


def _quality(plan: Plan, judgement: Judgement | None, budget: Budget) -> list[str]:
    elsewhere = ", ".join(f"{decibels:.1f} at {size}" for size, decibels in plan.sqnr_elsewhere.items())
    near = f"its outputs are {plan.sqnr_db:.1f} dB from fp32's{f' ({elsewhere})' if elsewhere else ''}{_probed(plan)}"
    near += "".join(f", {_share(share)} of the entries of {name} are fp32's" for name, share in plan.agreement.items())
    asked = f"at least {budget.sqnr_floor_db:g} dB asked for{'' if plan.sqnr_db >= budget.sqnr_floor_db else ': missed'}"
    if judgement is None:
        return [f"{near} ({asked}; there were no held-out images to judge it on)"]
    torch, int8 = judgement.qualities["torch"], judgement.qualities["int8"]
    why = f"one image weighs more than {budget.max_drop:g} points" if blind(torch, budget.max_drop) else "the metric looks at the first output alone"
    floor = "" if trusted(torch, judgement.outputs, budget.max_drop) else f" ({asked}, because {why})"
    return [f"{near}{floor}", f"{int8} on {int8.count} held-out images against PyTorch's {torch}"]


def _probed(plan: Plan) -> str:
    if not plan.probes:  # plans of before do not say
        return f", calibrated with {plan.calibration_images} images"
    return f" on {plan.probes} images {'beside' if plan.unseen else 'of'} the {plan.calibration_images} that it was calibrated with"


def _share(share: float) -> str:
    return "all" if share == 1 else f"{min(share, 0.999):.1%}"


def _why_not(plan: Plan, judgement: Judgement | None, budget: Budget) -> str:
    if plan.speedup is None:
        return "int8 is not taken by itself, because its speed could not be measured"
    if plan.speedup < WORTH_IT:
        return f"int8 is not taken, because it is not {WORTH_IT:g} times as fast as fp32"
    if plan.calibration_images < LEAST_IMAGES:
        return f"int8 is not taken by itself, because it was calibrated with {plan.calibration_images} images, and {LEAST_IMAGES} are asked for"
    if judgement is not None and judgement.drop("int8") > budget.max_drop:
        return f"int8 is not taken, because it loses more than the {budget.max_drop:g} {unit(judgement.qualities['torch'])} allowed"
    return f"int8 is not taken, because its outputs are not within {budget.sqnr_floor_db:g} dB of fp32's"
