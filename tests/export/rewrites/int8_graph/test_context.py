from dataclasses import dataclass

import onnx
import pytest

from edgeport_export.rewrites.graph import GraphEditor, PassResult
from edgeport_export.rewrites.int8_graph.context import Int8Context, run_passes
from edgeport_runtime import Contract


@dataclass(frozen=True)
class Place:
    name: str


@pytest.fixture
def context(class_contract: Contract) -> Int8Context:
    return Int8Context(contract=class_contract, products=frozenset(["conv"]), ranges={"x": (0.0, 1.0)}, followers=frozenset(["relu"]))


def test_a_result_is_handed_on(context: Int8Context) -> None:
    result = PassResult(changed=1, ranges={"y": (-1.0, 2.0), "x": (0.0, 3.0)}, followers=frozenset(["clip"]), facts=(Place("here"),))
    after = context.after(result)
    assert after.ranges == {"x": (0.0, 3.0), "y": (-1.0, 2.0)} and after.followers == {"relu", "clip"} and after.products == {"conv"}
    assert after.known(Place) == [Place("here")] and after.known(int) == []
    assert context.ranges == {"x": (0.0, 1.0)} and context.known(Place) == []  # values flow forward alone


def test_passes_run_in_order_and_see_what_earlier_ones_found(context: Int8Context) -> None:
    seen: list[list[Place]] = []

    def finds(editor: GraphEditor, given: Int8Context) -> PassResult:
        seen.append(given.known(Place))
        return PassResult(facts=(Place(f"{len(seen)}"),))

    after = run_passes((finds, finds, finds), GraphEditor(onnx.ModelProto()), context)
    assert seen == [[], [Place("1")], [Place("1"), Place("2")]] and len(after.known(Place)) == 3


def test_pixels_are_those_of_the_first_input(context: Int8Context, class_contract: Contract) -> None:
    assert context.pixels == class_contract.inputs[0].pixels


def test_a_pass_cannot_write_into_the_ranges_it_is_given(class_contract: Contract) -> None:
    ranges = {"x": (0.0, 1.0)}
    context = Int8Context(contract=class_contract, products=frozenset(), ranges=ranges)
    with pytest.raises(TypeError):
        context.ranges["y"] = (0.0, 1.0)  # type: ignore[index]
    after = context.after(PassResult(changed=1, ranges={"y": (0.0, 2.0)}))
    assert dict(after.ranges) == {"x": (0.0, 1.0), "y": (0.0, 2.0)} and ranges == {"x": (0.0, 1.0)}
