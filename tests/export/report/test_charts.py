"""Charts: each has what it shows in words, its points, and the page's colors; without data there is none."""

import json
import re
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock
from xml.etree import ElementTree

import pytest

from edgeport_export.report import charts
from edgeport_export.report.charts import Chart, chart
from edgeport_export.report.facts import BundleFacts, Product
from edgeport_runtime import Bundle
from edgeport_runtime.bundle import EVIDENCE

FIXTURES = Path(__file__).parents[2] / "fixtures"
MAKERS = {name: getattr(charts, f"{name}_chart") for name in ("parity", "plan", "order", "curve", "recovery", "clipping", "tradeoff", "stages")}


@pytest.fixture
def facts() -> BundleFacts:
    bundle = Bundle(FIXTURES / "format2" / "generator")
    stages = [{"name": name, "largest": 0.5, "rms": rms, "note": "x"} for name, rms in (("decode", 0.0), ("resize", 2e-5), ("int8", 3e-3), ("end to end", 4.0))]
    return BundleFacts(bundle, found={"manifest_sha256": bundle.sha256, "stages": {"images": 3, "stages": stages}})


@pytest.mark.parametrize("name", MAKERS)
def test_a_chart_is_a_drawing_in_the_pages_colors(name: str, facts: BundleFacts) -> None:
    made: Chart = MAKERS[name](facts)
    root = ElementTree.fromstring(made.svg)
    assert root.attrib["role"] == "img" and root[0].tag.endswith("title") and root[0].text == made.says and len(made.says) > 30
    assert not re.findall(r"#[0-9a-fA-F]{6}", made.svg.replace("#000000", "")) and "var(--" in made.svg
    ids = re.findall(r'\bid="([^"]+)"', made.svg)
    assert len(ids) == len(set(ids)) and all(each.startswith(f"bundle-{name}-chart-") for each in ids)
    used = re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', made.svg)
    assert set(used) <= set(ids)
    assert MAKERS[name](facts).svg == made.svg  # the same bytes each time


def test_what_is_drawn_is_what_the_plan_holds(facts: BundleFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = MagicMock()
    monkeypatch.setattr(charts, "chart", lambda draw, *_, **__: draw(axes))
    stored = json.loads((FIXTURES / "format2" / "generator" / EVIDENCE).read_text())["int8"]
    charts.plan_chart(facts)
    drawn = [point for call in axes.scatter.call_args_list for point in zip(*call.args[:2], strict=True)]
    assert sorted(drawn) == sorted((each["speedup"], each["sqnr_db"]) for each in stored["findings"].values())
    charts.order_chart(facts)
    assert axes.bar.call_args.args[1] == [each["sqnr_db"] for each in stored["findings"].values()]
    charts.curve_chart(facts)
    assert axes.plot.call_args_list[0].args[:2] == (
        [each["speedup"] for each in stored["curve"]["points"]],
        [each["sqnr_db"] for each in stored["curve"]["points"]],
    )
    charts.recovery_chart(facts)
    assert [call.args[0] for call in axes.plot.call_args_list[1::2]] == [[each["before_db"], each["after_db"]] for each in stored["steps"]]
    charts.stages_chart(facts)
    assert axes.barh.call_args.args[1] == [0.0, 2e-5, 3e-3]
    charts.clipping_chart(facts)
    shares = [100 * each["share"] for each in stored["audit"]["clipped"]]
    assert axes.barh.call_args.args[1] == sorted((each for each in shares if each), reverse=True)[: charts.MOST_BARS]


@pytest.mark.parametrize("name", ["parity", "stages"])
def test_powers_of_ten_are_written_out(name: str, facts: BundleFacts) -> None:
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", MAKERS[name](facts).svg)
    assert any(re.fullmatch(r"\de\N{MINUS SIGN}\d+", each) for each in texts) and not any("mathdefault" in each for each in texts)


def test_the_worst_is_named_in_words(facts: BundleFacts) -> None:
    facts.products = [Product(name=name, macs=1, speedup=1.0, sqnr_db=decibels, reason=None) for name, decibels in (("a", 30.0), ("b", 12.34), ("c", 50.0))]  # type: ignore[misc]
    made = charts.order_chart(facts)
    assert made is not None and made.says == "The error that each of 3 products makes alone, along the graph. b makes the largest: 12.3 dB."


def test_without_data_there_is_no_chart() -> None:
    facts = BundleFacts(Bundle(FIXTURES / "format1" / "classifier"))
    assert charts.curve_chart(facts) is charts.recovery_chart(facts) is charts.stages_chart(facts) is None and facts.clipped
    facts.parity = [replace(each, height=8, width=8) for each in facts.parity]
    assert charts.parity_chart(facts) is None  # one size is no curve


def test_names_are_drawn_as_they_are() -> None:
    """Dollars make formulas in matplotlib, and what is no formula an error."""
    name = r"<script>$\frac{$&"
    made = chart(lambda axes: axes.set_xlabel(name), name, name, name="x")
    assert "<script>" not in made.svg and r"&lt;script&gt;$\frac{$&amp;" in made.svg
    ElementTree.fromstring(made.svg)
