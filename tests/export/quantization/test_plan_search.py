"""A plan that is searched, and others that are picked from its curve."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from edgeport_export import ExportError, ExportOptions, export_bundle, read_plan
from edgeport_export.quantization import plan_search
from edgeport_export.quantization.plan_curve import Curve, CurvePoint
from edgeport_runtime import Bundle, Contract, Example, load

pytestmark = pytest.mark.usefixtures("fixed_latencies")
Make = Callable[..., Path]
Promised = Callable[[Path], dict[str, bytes]]


class Stack(nn.Module):
    """Six convolutions whose weights differ, so that rounding costs."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1)]
        for _ in range(5):
            layers += [nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(16, 3)
        for each in self.modules():
            if isinstance(each, nn.Conv2d):
                each.weight.data *= torch.exp(1.5 * torch.randn_like(each.weight)) / 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean((2, 3)))


def noise(count: int, seed: int) -> list[Example]:
    generator = np.random.default_rng(seed)
    return [Example(source=generator.integers(0, int(generator.integers(9, 256)), (16, 16, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Stack().eval()


@pytest.fixture
def exported(network: nn.Module, class_contract: Contract, tmp_path: Path) -> Callable[..., Bundle]:
    def made(name: str, **options: object) -> Bundle:
        given = ExportOptions(**{"always_keep_int8": True, "sqnr_floor_db": 10.0, **options})  # type: ignore[arg-type]
        return export_bundle(network, class_contract, tmp_path / name, calibration=noise(40, seed=0), options=given)

    return made


def test_a_plan_of_the_curve_is_picked_without_a_search(exported: Callable[..., Bundle], promised: Promised, monkeypatch: pytest.MonkeyPatch) -> None:
    fastest = read_plan(exported("fastest").folder)
    assert fastest.curve is not None and len(fastest.curve.points) >= 3 and set(fastest.integer) == set(fastest.curve.order)
    closest = read_plan(exported("closest", pick="closest").folder)
    assert closest.curve is not None and set(closest.integer) == closest.curve.integer(closest.curve.pick("closest") or closest.curve.points[0])
    assert set(closest.integer) < set(fastest.integer) and closest.sqnr_db > fastest.sqnr_db

    def searched(*_: object, **__: object) -> None:
        raise AssertionError("nothing is searched again")

    for name in ("search", "calibrate", "walked"):
        monkeypatch.setattr(plan_search, name, searched)
    again = exported("again", plan=fastest, pick="closest")
    assert read_plan(again.folder).integer == closest.integer
    assert read_plan(again.folder).curve == fastest.curve and read_plan(again.folder).recovery == closest.recovery
    assert again.variant("int8").sha256 == exported("closest again", plan=read_plan(again.folder)).variant("int8").sha256
    back = exported("back", plan=closest, pick="fastest")
    assert read_plan(back.folder).integer == fastest.integer and "the closest plan was asked for" not in str(read_plan(back.folder).kept_float)


def test_the_figures_of_a_picked_plan_are_its_own(exported: Callable[..., Bundle], network: nn.Module) -> None:
    plan = read_plan(exported("fastest").folder)
    picked = exported("closest", plan=plan, pick="closest")
    pixels = np.stack([each.source for each in noise(64, seed=9)])
    fp32, int8 = (load(picked.folder, precision=each).raw(pixels[:8])["logits"] for each in ("fp32", "int8"))
    error_db = 10 * np.log10(np.square(fp32 - fp32.mean(0)).sum() / np.square(int8 - fp32).sum())
    assert read_plan(picked.folder).sqnr_db == pytest.approx(error_db, abs=4) and read_plan(picked.folder).sqnr_db > plan.sqnr_db


def test_every_step_is_told_with_its_decibels(exported: Callable[..., Bundle]) -> None:
    bundle = exported("b")
    steps = bundle.evidence()["summary"]["recovery"]
    assert [step["name"] for step in steps] == ["a range for each value", "weights rounded for each other"]
    assert all(step["taken"] == (step["after_db"] > step["before_db"] + 0.5) for step in steps) and steps[1]["taken"]
    assert bundle.evidence()["int8"]["steps"] == steps
    assert exported("off", recover="off").evidence()["summary"]["recovery"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curve": None}, "has no curve of plans to pick from"),
        ({"graph_sha256": "0" * 64}, "made for another graph, so no other plan of its curve can be picked"),
    ],
)
def test_a_plan_that_cannot_be_picked_from_says_why(change: dict[str, object], message: str, exported: Callable[..., Bundle], tmp_path: Path) -> None:
    plan = replace(read_plan(exported("b").folder), **change)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=message):
        exported("c", plan=plan, pick="closest")
    assert not (tmp_path / "c").exists()


def test_picking_needs_images(exported: Callable[..., Bundle], network: nn.Module, class_contract: Contract, tmp_path: Path) -> None:
    options = ExportOptions(plan=read_plan(exported("b").folder), pick="balanced")
    with pytest.raises(ExportError, match="int8 needs calibration images, and there are none"):
        export_bundle(network, class_contract, tmp_path / "c", options=options)


def test_if_the_budget_leaves_no_plan_the_fastest_is_kept_for_who_wants_it(exported: Callable[..., Bundle]) -> None:
    bundle = exported("b", sqnr_floor_db=200.0, pick="closest")
    plan = read_plan(bundle.folder)
    assert plan.curve is not None and not any(each.in_budget for each in plan.curve.points) and set(plan.integer) == set(plan.curve.order)
    assert bundle.manifest.auto.precision == "fp32" and "at least 200 dB are asked for" in bundle.manifest.auto.reason


def test_held_out_images_that_chose_do_not_judge(make_bundle: Make, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variant loses an answer here, so all of them judge; with a metric that int8 fails at first, half of them do."""
    examples = tiny.brightness_examples(64, seed=3)
    whole = Bundle(make_bundle(tmp_path / "whole", held_out=examples, options=ExportOptions(max_drop=2.0))).evidence()
    assert whole["quality"]["count"] == 64 and whole["int8"]["audit"]["judged_by"] == 64

    def measured(judge: plan_search.BudgetJudge, names: frozenset[str]) -> bool:
        if judge.divided:
            return True
        judge._divide()
        return False

    monkeypatch.setattr(plan_search.BudgetJudge, "keeps", measured)
    half = Bundle(make_bundle(tmp_path / "half", held_out=examples, options=ExportOptions(max_drop=4.0))).evidence()
    assert half["quality"]["count"] == 32 and half["int8"]["audit"]["judged_by"] == 32
    plan = read_plan(tmp_path / "half")
    assert plan.divided and not read_plan(tmp_path / "whole").divided
    for name, pick in (("replayed", None), ("picked", "fastest")):  # those that chose do not judge later either
        again = make_bundle(tmp_path / name, held_out=examples, options=ExportOptions(max_drop=4.0, plan=plan, pick=pick))
        assert Bundle(again).evidence()["quality"]["count"] == 32 and read_plan(again).divided


def test_a_curve_is_in_the_manifest_as_the_evidence_has_it(exported: Callable[..., Bundle]) -> None:
    bundle = exported("b")
    curve = read_plan(bundle.folder).curve
    assert isinstance(curve, Curve) and all(isinstance(each, CurvePoint) for each in curve.points)
    assert bundle.evidence()["int8"]["curve"]["points"] == [vars(each) for each in curve.points]
