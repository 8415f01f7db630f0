"""The int8 plan: what runs as integers and why, with every figure that decided it; stored in the manifest, and replayed from there."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from edgeport_runtime import Bundle
from edgeport_runtime.bundle import MANIFEST

from .errors import ExportError

SEAL = "sha256"
LATER = {"agreement", "probes", "unseen"}  # fields that plans made before them do without


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was measured about one product. `slower`: time of the variant with this product in float, over the time with it as integers: above 1,
    int8 pays; None where the search did not get to it. `sqnr_db`: of the outputs when this product alone runs as integers."""

    multiplications: int
    slower: float | None = None
    sqnr_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides the bytes of an int8 variant, and the words about it.

    `integer`: names of the products that run as integers. `kept_float`: name -> reason. `integer_share`: of all multiplications at the
    contract's size, 0..1. `limits`: value -> lowest and highest that does not clip. `graph_sha256`: of the float graph that it was made for.
    `sqnr_db`: of the outputs at the contract's size; `sqnr_elsewhere`: at other sizes, as "heightxwidth". `agreement`: of outputs of integers, the
    share of entries that are fp32's. `speedup`: fp32's time over int8's, at `batch`; None where the target's CPU was not at hand.
    `auto`: what `verdict.decide` says. `probes`: images that errors were measured on; `unseen`: none of them was calibrated with.
    """

    target: str
    formats: str
    method: str
    integer: tuple[str, ...]
    kept_float: Mapping[str, str]
    integer_share: float
    verdict: str
    auto: Mapping[str, str]
    limits: Mapping[str, tuple[float, float]]
    graph_sha256: str
    calibration_images: int
    calibration_sha256: str
    sqnr_db: float
    batch: int
    speedup: float | None
    sqnr_elsewhere: Mapping[str, float] = field(default_factory=dict)
    findings: Mapping[str, Finding] = field(default_factory=dict)
    agreement: Mapping[str, float] = field(default_factory=dict)
    probes: int = 0
    unseen: bool = False

    def to_dict(self) -> dict[str, Any]:
        """With a hash over all of it, because what it says was measured, and holds for nothing else."""
        body = asdict(self)
        return {**body, SEAL: _seal(body)}


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def plan_from_dict(data: Any) -> Plan:
    """Raises ExportError naming what is missing or strange, and where the plan is not as it was made."""
    if not isinstance(data, Mapping):
        raise ExportError(f"this is no int8 plan of edgeport: expected an object of JSON, got {type(data).__name__}")
    names = {each.name for each in fields(Plan)}
    missing, strange = sorted(names - LATER - set(data)), sorted(set(data) - names - {SEAL})
    if missing or strange:
        raise ExportError(f"this is no int8 plan of edgeport: missing {', '.join(missing) or 'nothing'}, unknown {', '.join(strange) or 'nothing'}")
    data = dict(data)
    if data.pop(SEAL, "") != _seal(data):
        raise ExportError("this int8 plan was changed after it was made, so that its figures are no longer those of its variant: make a new one without --plan")
    try:
        return Plan(
            **{
                **data,
                "integer": tuple(data["integer"]),
                "limits": {name: (float(low), float(high)) for name, (low, high) in data["limits"].items()},
                "findings": {name: Finding(**each) for name, each in data["findings"].items()},
            }
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ExportError(f"this is no int8 plan of edgeport: {error}") from error


def read_plan(path: Path) -> Plan:
    """From a bundle, a manifest, or a file that holds a plan alone. Raises ExportError, BundleError."""
    folder = path if path.is_dir() else path.parent if path.name == MANIFEST else None
    if folder is not None:
        plans = [variant.plan for variant in Bundle(folder).manifest.variants if variant.plan]
        if not plans:
            raise ExportError(f"{folder}: this bundle has no int8 plan to replay")
        return plan_from_dict(plans[0])
    try:
        return plan_from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: the int8 plan cannot be read ({error}); name a bundle, or a JSON file with its plan") from error
