"""The int8 plan: the products that run as integers and why, with every figure that decided it; stored in the manifest, and replayed from there."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from edgeport_export.errors import ExportError
from edgeport_runtime import Bundle
from edgeport_runtime.bundle import MANIFEST
from edgeport_runtime.errors import first_line
from edgeport_runtime.manifest import FORMAT, Selection, selection_of_format_1
from edgeport_runtime.regular_files import read_text, what_is

from .label_changes import LabelChanges
from .plan_curve import Curve, curve_from_dict

SEAL = "sha256"
RENAMED = {"limits": "ranges"}  # fields of format 1; its words about the decision are those of the selection
ADDED = {"agreement", "probes", "unseen", "sqnr_elsewhere"}  # fields that the first plans of format 1 lack; they have no seal either, but their manifest does

LATER = {"sqnr_error_db", "changes", "recovery", "smoothing", "steps", "curve", "divided"}  # fields that the first plans of format 2 lack


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was measured about one product.

    `speedup`: time of the whole variant with this product in float, over its time with the product as integers; None if the search did not
    get to it. `sqnr_db`: signal over error of the outputs if this product alone runs as integers.
    """

    macs: int
    speedup: float | None = None
    sqnr_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class WeightRecovery:
    """How the weights were rounded for each other (see `weight_recovery`); with the same images they come out the same.

    `effort`: a key of EFFORTS. `seed`: for the order of the images and the positions in them. `products`: how many were done, in the graph's
    order, before time was up. `images`: number of those that were at hand; `images_sha256`: over their pixels. `weights_sha256`: over what came out.
    `nearest_db`, `sqnr_db`: signal over error of the outputs on other images, with weights rounded to the nearest step and so.
    """

    effort: str
    seed: int
    products: int
    images: int
    images_sha256: str
    weights_sha256: str
    nearest_db: float
    sqnr_db: float


@dataclass(frozen=True, kw_only=True)
class RecoveryStep:
    """One thing that was tried to bring the variant nearer to fp32. `before_db`, `after_db`: signal over error of the outputs on images to which nothing was
    fitted, without it and with it. `taken`: whether it stayed."""

    name: str
    before_db: float
    after_db: float
    taken: bool


@dataclass(frozen=True, kw_only=True)
class SearchedPlan:
    """The result of a search: everything that decides the bytes of an int8 variant, and what was measured about its error.

    `integer`: names of the products that run as integers. `kept_float`: name -> reason. `integer_share`: of all MACs at the contract's own
    size, 0..1. `ranges`: value -> lowest and highest number that does not clip; `method`: how they were chosen. `graph_sha256`: of the float
    graph that the plan was made for. `calibration_images`: number of different ones. `batch`: the batch size that the plan was made for.
    `sqnr_db`: signal over error of the outputs at the contract's own size; `sqnr_elsewhere`: at other sizes, as "heightxwidth".
    `agreement`: of outputs of integers, the share of entries that are fp32's. `probes`: number of images that errors were measured on;
    `unseen`: whether none of them was calibrated with. `sqnr_error_db`: the standard error of `sqnr_db`, from leaving some of these images out; None
    if there were too few. `changes`: for a classifier without truth, the labels that int8 changes on images that nothing was fitted to or chosen on.
    `recovery`: how weights were rounded; None if each went to its nearest step. `smoothing`: normalization -> the powers of two by which its channels are
    divided and their weights multiplied. `steps`: what was tried to bring the variant nearer to fp32, in order. `curve`: the plans that were tried.
    `divided`: whether every second held-out image chose among them, so that the others judge this plan and each replay of it.
    """

    target: str
    formats: str
    method: str
    integer: tuple[str, ...]
    kept_float: Mapping[str, str]
    integer_share: float
    ranges: Mapping[str, tuple[float, float]]
    graph_sha256: str
    calibration_images: int
    calibration_sha256: str
    batch: int
    sqnr_db: float
    sqnr_elsewhere: Mapping[str, float] = field(default_factory=dict)
    findings: Mapping[str, Finding] = field(default_factory=dict)
    agreement: Mapping[str, float] = field(default_factory=dict)
    probes: int = 0
    unseen: bool = False
    sqnr_error_db: float | None = None
    changes: LabelChanges | None = None
    recovery: WeightRecovery | None = None
    smoothing: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    steps: tuple[RecoveryStep, ...] = ()
    curve: Curve | None = None
    divided: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan(SearchedPlan):
    """A searched plan with the decision about it.

    `speedup`: fp32's time over int8's, at `batch`; None if the target's CPU was not at hand. `selection`: what "auto" takes, and why.
    """

    speedup: float | None
    selection: Selection

    def to_dict(self) -> dict[str, Any]:
        """With a hash over all of it, because its figures were measured and hold for nothing else."""
        body = {"format": FORMAT, **asdict(self)}
        return {**body, SEAL: _seal(body)}


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def plan_from_dict(data: Any) -> Plan:
    """Read a plan of this or an older format.

    Raises ExportError if a field is missing or unknown, or if the plan was changed after it was made.
    """
    if not isinstance(data, Mapping):
        raise ExportError(f"this is no int8 plan of edgeport: expected an object of JSON, got {type(data).__name__}")
    body = {key: value for key, value in data.items() if key != SEAL}
    form = body.get("format", 1)
    if form not in range(1, FORMAT + 1):
        raise ExportError(f"this int8 plan has format {form!r}, and this edgeport reads up to {FORMAT}: upgrade edgeport, or make a new plan")
    current = _from_format_1(body) if form == 1 else {key: value for key, value in body.items() if key != "format"}
    names = {each.name for each in fields(Plan)}
    missing, unknown = sorted(names - set(current) - LATER - (ADDED if form == 1 else set())), sorted(set(current) - names)
    if missing or unknown:
        raise ExportError(f"this is no int8 plan of edgeport: missing {', '.join(missing) or 'nothing'}, unknown {', '.join(unknown) or 'nothing'}")
    if data.get(SEAL) != _seal(body) and (SEAL in data or form > 1):
        raise ExportError("this int8 plan was changed after it was made, so that its figures are no longer those of its variant: make a new one without --plan")
    try:
        return Plan(
            **{
                **current,
                "integer": tuple(current["integer"]),
                "ranges": {name: (float(low), float(high)) for name, (low, high) in current["ranges"].items()},
                "findings": {name: Finding(**each) for name, each in current["findings"].items()},
                "changes": LabelChanges(**current["changes"]) if current.get("changes") is not None else None,
                "recovery": WeightRecovery(**current["recovery"]) if current.get("recovery") is not None else None,
                "smoothing": {name: tuple(map(int, each)) for name, each in (current.get("smoothing") or {}).items()},
                "steps": tuple(RecoveryStep(**each) for each in current.get("steps") or ()),
                "curve": curve_from_dict(current["curve"]) if current.get("curve") is not None else None,
                "selection": Selection(**current["selection"]),
            }
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ExportError(f"this is no int8 plan of edgeport: {error}") from error


def _from_format_1(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields under their present names. The words about the decision are left out: they are the selection's reason."""
    known = {each.name for each in fields(Plan)} | {*RENAMED, "auto"}
    current = {RENAMED.get(key, key): value for key, value in body.items() if key in known}
    auto, findings = current.pop("auto", None), current.pop("findings", None)
    if isinstance(auto, Mapping):
        current["selection"] = asdict(selection_of_format_1(auto))
    if isinstance(findings, Mapping):
        current["findings"] = {
            name: {"macs": each.get("multiplications"), "speedup": each.get("slower"), "sqnr_db": each.get("sqnr_db")} for name, each in findings.items()
        }
    return current


def read_plan(path: str | Path) -> Plan:
    """From a bundle, a manifest, or a file that holds a plan alone. Raises ExportError, BundleError."""
    path = Path(path)
    folder = path if what_is(path) == "a folder" else path.parent if path.name == MANIFEST else None
    if folder is not None:
        plans = [variant.plan for variant in Bundle(folder).manifest.variants if variant.plan]
        if not plans:
            raise ExportError(f"{folder}: this bundle has no int8 plan to replay")
        return plan_from_dict(plans[0])
    try:
        data = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path}: the int8 plan cannot be read ({first_line(error)}); name a bundle, or a JSON file with its plan") from error
    try:
        return plan_from_dict(data)
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error
