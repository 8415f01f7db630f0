"""All that a report may say, read from a bundle. What an old bundle, or one without evidence, does not have is empty, and its section is left out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from edgeport_export.errors import ExportError
from edgeport_export.quantization.plan import Plan, RecoveryStep, plan_from_dict
from edgeport_export.quantization.plan_curve import CurvePoint
from edgeport_runtime import Bundle, FormatError, InputError
from edgeport_runtime.axes import is_whole
from edgeport_runtime.scorers import format_metric
from edgeport_runtime.tasks import find_task

from .verification import StageRow, stage_rows, verification_faults

Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class VariantRow:
    """Figures of one variant; None for what was not measured. `kept`: whether it is in the bundle. `speedup`: over fp32 by batch size."""

    precision: str
    kept: bool
    bytes: int
    quality: float | None
    changed: int | None
    sqnr_db: float | None
    ms_per_call: Mapping[int, float]
    speedup: Mapping[int, float]
    load_ms: float | None
    peak_mib: float | None
    integer_share: float | None


@dataclass(frozen=True, kw_only=True)
class ParityCase:
    """One size of the sweep. `onnx`, `torch`: the largest distance from PyTorch in float64, of the graph and of PyTorch in float32."""

    batch: int
    height: int | None
    width: int | None
    output: str
    onnx: float
    torch: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Product:
    """One convolution or matrix product. `reason`: why it runs in float; None if it runs as integers."""

    name: str
    macs: int
    speedup: float | None
    sqnr_db: float | None
    reason: str | None


class BundleFacts:
    """Of one bundle. `key`: begins the ids of its part of a page. `found`: what `edgeport verify --json` printed about it, or a part of that; it counts
    only for the very same manifest. Raises InputError, and what `Bundle` raises."""

    def __init__(self, bundle: Bundle, key: str = "bundle", found: Json | None = None) -> None:
        if found and found.get("manifest_sha256") != bundle.sha256:
            raise InputError(f"this verification is of another bundle than {bundle.folder}: make it with edgeport verify {bundle.folder} --json > FILE")
        if faults := verification_faults(found or {}):
            raise InputError(f"this verification is not as edgeport verify prints it: {faults[0]}; make it again")
        self.bundle = bundle
        self.key = key
        self.found: Json = found or {}
        self.manifest = bundle.manifest
        self.evidence_fault: str | None
        try:
            self.evidence: Json = bundle.evidence()
            self.evidence_fault = None
        except FormatError as error:  # nobody vouches for it
            self.evidence, self.evidence_fault = {}, str(error)

    @property
    def name(self) -> str:
        return self.manifest.name

    @cached_property
    def plan(self) -> Plan | None:
        """Of int8, also if int8 is not in the bundle. None if there is none, or if it cannot be read."""
        stored = [each.plan for each in self.manifest.variants if each.plan]
        made = _at(self.evidence, "int8")
        for data in (*stored, {key: each for key, each in made.items() if key != "audit"}):
            try:
                return plan_from_dict(data) if data else None
            except ExportError:
                continue
        return None

    @cached_property
    def variants(self) -> list[VariantRow]:
        kept = {each.precision: each for each in self.manifest.variants}
        figures = _at(self.evidence, "summary", "variants")
        return [self._row(name, _at(figures, name), kept) for name in dict.fromkeys((*kept, *figures))]

    def _row(self, name: str, figures: Json, kept: Mapping[str, Any]) -> VariantRow:
        speed = _at(self.evidence, "speed")
        timed = _numbers(figures.get("ms_per_call")) or _numbers({speed.get("batch"): _at(speed, "ms_per_call").get(name)})  # before there was a summary
        return VariantRow(
            precision=name,
            kept=name in kept,
            bytes=kept[name].bytes if name in kept else int(_number(figures.get("bytes")) or 0),
            quality=_number(_at(self.evidence, "quality", "values").get(name)),
            changed=_whole(_at(self.evidence, "quality", "changed").get(name, figures.get("changed_labels"))) if self.has_labels else None,
            sqnr_db=self.plan.sqnr_db if name == "int8" and self.plan is not None else None,
            ms_per_call=timed,
            speedup=_numbers(figures.get("speedup")) or self._speedup_of_the_plan(name),
            load_ms=_number(figures.get("load_ms")),
            peak_mib=_number(figures.get("peak_mib")),
            integer_share=self.plan.integer_share if name == "int8" and self.plan is not None else None,
        )

    def _speedup_of_the_plan(self, precision: str) -> dict[int, float]:
        """Where there is no summary, as in format 1 or without evidence."""
        plan = self.plan if precision == "int8" else None
        return {} if plan is None or plan.speedup is None else {plan.batch: plan.speedup}

    @property
    def has_labels(self) -> bool:
        return find_task(self.manifest.contract.task).answers_are_labels

    @property
    def changed_images(self) -> Mapping[str, list[dict[str, Any]]]:
        """By variant, the images whose label it changes: image, torch, answer, truth, torch_margin, margin."""
        listed = _at(self.evidence, "quality", "changed_images")
        wanted = ("torch_margin", "margin")
        return {name: [dict(each) for each in _objects(rows) if all(_number(each.get(key)) is not None for key in wanted)] for name, rows in listed.items()}

    def label(self, index: Any) -> str:
        """Of a class; empty for None."""
        labels = self.manifest.contract.labels
        return "" if index is None else labels[index] if isinstance(index, int) and 0 <= index < len(labels) else str(index)

    @property
    def metric(self) -> str | None:
        found = _at(self.evidence, "quality").get("metric")
        return found if isinstance(found, str) else None

    @property
    def metric_name(self) -> str:
        """As people say it; the user's own is its function's name."""
        return {"psnr_db": "PSNR", "mean_iou": "mean IoU", "mean_ap": "mAP"}.get(self.metric or "", self.metric or "")

    @property
    def images(self) -> int | None:
        """On which quality was measured."""
        return _whole(_at(self.evidence, "quality").get("count"))

    @property
    def held_out(self) -> int:
        """All that the export was given; one half of them may have chosen, and the other one judged."""
        return _whole(_at(self.evidence, "images").get("held_out")) or self.images or 0

    @property
    def torch_quality(self) -> float | None:
        return _number(_at(self.evidence, "quality", "values").get("torch"))

    def quality(self, value: float | None) -> str:
        """A quality in the words of its metric."""
        return "" if value is None or self.metric is None else format_metric(self.metric, value)

    @cached_property
    def parity(self) -> list[ParityCase]:
        found = []
        for each in _objects(_at(self.evidence, "parity", "fp32").get("cases")):
            sizes = _at(each, "sizes")
            found.append(
                ParityCase(
                    batch=_whole(sizes.get("batch")) or 1,
                    height=_whole(sizes.get("height")),
                    width=_whole(sizes.get("width")),
                    output=str(each.get("output", "")),
                    onnx=_number(each.get("onnx")) or 0.0,
                    torch=_number(each.get("torch")) or 0.0,
                    passed=not each.get("fault"),  # format 1 has an empty text
                )
            )
        return found

    @property
    def parity_passed(self) -> bool | None:
        found = _at(self.evidence, "parity", "fp32").get("passed")
        return found if isinstance(found, bool) else None

    @property
    def parity_factor(self) -> float | None:
        """How many times PyTorch's own distance from float64 the graph may have."""
        return _number(_at(self.evidence, "parity", "fp32").get("factor"))

    @cached_property
    def products(self) -> list[Product]:
        """In the graph's order."""
        if self.plan is None:
            return []
        return [
            Product(name=name, macs=each.macs, speedup=each.speedup, sqnr_db=each.sqnr_db, reason=self.plan.kept_float.get(name))
            for name, each in self.plan.findings.items()
        ]

    @property
    def curve(self) -> Sequence[CurvePoint]:
        return () if self.plan is None or self.plan.curve is None else self.plan.curve.points

    @property
    def recovery(self) -> Sequence[RecoveryStep]:
        return () if self.plan is None else self.plan.steps

    @property
    def clipped(self) -> list[Json]:
        """The layers of which most was clipped on images that were not calibrated with: layer, value, share."""
        listed = _at(self.evidence, "int8", "audit").get("clipped")
        if isinstance(listed, Mapping):  # format 1: by value
            listed = [{"layer": name, "value": name, "share": share} for name, share in listed.items()]
        return [each for each in _objects(listed) if _number(each.get("share")) is not None]

    @property
    def warnings(self) -> list[str]:
        listed = _at(self.evidence, "summary").get("warnings")
        return list(map(str, listed)) if isinstance(listed, list) else []

    @cached_property
    def stages(self) -> list[StageRow]:
        """In order, the last from one end to the other."""
        return stage_rows(self.found)

    @property
    def machine(self) -> Json:
        return _at(self.evidence, "machine")

    @property
    def provenance(self) -> Json:
        return self.manifest.provenance


def _at(data: Any, *keys: str) -> Json:
    """The object within an object within another; empty if there is none."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data if isinstance(data, Mapping) else {}


def _objects(data: Any) -> list[Json]:
    return [each for each in data if isinstance(each, Mapping)] if isinstance(data, list) else []


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def _whole(value: Any) -> int | None:
    return int(value) if is_whole(value) else None


def _numbers(data: Any) -> dict[int, float]:
    """By batch size; JSON's keys are texts."""
    found = data.items() if isinstance(data, Mapping) else ()
    return {int(key): float(each) for key, each in found if str(key).isdecimal() and _number(each) is not None}
