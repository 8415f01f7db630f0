"""Modules from node names, their layers and figures, on graphs made by hand."""

from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
from onnx import TensorProto, helper

from edgeport_export.report.facts import BundleFacts, Product
from edgeport_export.report.structure import MOST, description, figures, layers_of, modules_of, structure
from edgeport_runtime import Bundle

FIXTURES = Path(__file__).parents[2] / "fixtures"


def model(*nodes: tuple[str, str, list[str], str]) -> onnx.ModelProto:
    """Of (name, operator, inputs, output)."""
    made = [helper.make_node(operator, inputs, [output], name=name) for name, operator, inputs, output in nodes]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", nodes[-1][3])]
    return helper.make_model(helper.make_graph(made, "g", ends[:1], ends[1:]))


def product(name: str, macs: int, reason: str | None = None, sqnr_db: float | None = None, speedup: float | None = None) -> Product:
    return Product(name=name, macs=macs, speedup=speedup, sqnr_db=sqnr_db, reason=reason)


BLOCK = (
    ("stem/Conv", "Conv", ["x"], "a"),
    ("block.left/Conv", "Conv", ["a"], "b"),
    ("block.left/Relu", "Relu", ["b"], "c"),
    ("block.right/Conv", "Conv", ["a"], "d"),
    ("block/Add", "Add", ["c", "d"], "e"),
    ("head/Gemm", "Gemm", ["e"], "f"),
)


def test_modules_lie_below_what_they_read_from() -> None:
    modules = modules_of(model(*BLOCK), [product("stem/Conv", 10), product("block.left/Conv", 20, "slow")])
    rows = layers_of(modules)
    assert [[each.path for each in row] for row in rows] == [["stem"], ["block.left", "block.right"], ["block"], ["head"]]
    assert [each.precision for each in modules] == ["integer", "float", "none", "none", "none"]
    assert {each.path: each.reads for each in modules}["block"] == {"block.left", "block.right"}


def test_a_module_that_is_called_twice_makes_no_circle() -> None:
    nodes = (("a/Abs", "Abs", ["x"], "p"), ("b/Neg", "Neg", ["p"], "q"), ("a/Abs_1", "Abs", ["q"], "r"))
    rows = layers_of(modules_of(model(*nodes), []))
    assert [[each.path for each in row] for row in rows] == [["a"], ["b"]]


def test_many_modules_are_joined_to_their_parents() -> None:
    nodes = [(f"layer{i // 10}.{i % 10}.conv/Conv", "Conv", [f"v{i - 1}" if i else "x"], f"v{i}") for i in range(100)]
    modules = modules_of(model(*nodes), [product(name, 1, None if index % 2 else "slow") for index, (name, *_) in enumerate(nodes)])
    assert len(modules) == 10 <= MOST and modules[3].path == "layer3"
    assert modules[3].operators == {"Conv": 10} and modules[3].precision == "mixed" and modules[3].macs == 10


def test_a_module_in_words() -> None:
    modules = {each.path: each for each in modules_of(model(*BLOCK), [product("block.left/Conv", 25, "slow", 31.26)])}
    assert description(modules["block.left"], 100) == "block.left; float; 25 MACs (25.0 %); 31.3 dB if alone integer; Conv, Relu"
    quick = {each.path: each for each in modules_of(model(*BLOCK), [product("stem/Conv", 10, speedup=1.5)])}["stem"]
    assert description(quick, 10) == "stem; integers; 10 MACs (100.0 %); 1.5 times as fast with it as integers; Conv"
    assert description(modules["head"], 100) == "head; no products; Gemm"
    assert figures(modules["block.left"], 100) == "25.0 % of MACs, 31.3 dB" and figures(modules["head"], 100) == "Gemm"


@pytest.mark.parametrize("folder", sorted(FIXTURES.glob("format*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_each_module_can_be_focused_and_has_its_words(folder: Path) -> None:
    made = structure(BundleFacts(Bundle(folder)))
    assert made is not None
    root = ElementTree.fromstring(made.svg)
    boxes = [each for each in root.iter() if each.attrib.get("class", "").startswith("module")]
    assert len(boxes) == len(made.modules) and all(each.attrib["tabindex"] == "0" for each in boxes)
    cards = [each for each in root.iter() if each.attrib.get("class") == "card"]
    for box, card in zip(boxes, cards, strict=True):  # the same words, but for where lines end
        assert box.attrib["aria-label"].replace("; ", "").replace(" ", "") == "".join(str(each.text) for each in card[1:]).replace(" ", "")
        assert box.attrib["id"].replace("module", "card") == card.attrib["id"]
    height = float(root.attrib["height"])
    assert all(float(card[0].attrib["y"]) >= 0 and float(card[0].attrib["y"]) + float(card[0].attrib["height"]) <= height for card in cards)
    edges = [each for each in root.iter() if each.attrib.get("class") == "edge"]
    assert len(edges) == sum(len(each.reads) for each in made.modules) > 0


def test_a_hostile_name_is_text() -> None:
    nodes = (("<img src=x onerror=alert(1)>/Abs", "Abs", ["x"], "y"),)
    modules = modules_of(model(*nodes), [])
    assert modules[0].path == "<img src=x onerror=alert(1)>"
    from edgeport_export.report import structure as module

    svg = module._svg(layers_of(modules), "says <b>", "k")
    assert "<img" not in svg and "<b>" not in svg and "&lt;img" in svg
