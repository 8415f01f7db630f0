import numpy as np

from edgeport_export.validation.parity import Case, Parity, remedy
from edgeport_export.validation.sweep import Row, compared
from edgeport_runtime import Contract


def row(exact: np.ndarray, got: np.ndarray, *, run: int = 0, sizes: dict[str, int] | None = None) -> Row:
    return Row(run=run, sizes=sizes or {"batch": 1}, output="y", exact=exact, single=exact, got=got)


def test_rounding_is_called_rounding_and_fails_all_the_same(class_contract: Contract) -> None:
    exact, unit = np.array([[0.0, 1.0]]), np.array([[0.0, 1.0]])
    own, other = {"batch": 1, "height": 16, "width": 16}, {"batch": 2, "height": 16, "width": 16}
    for off, words in ((9e-7, "add a long sum in parts, or leave batch out"), (9e-3, "right at its own size, but not at others of batch")):
        parity = compared(["y"], [row(exact, exact, sizes=own), row(exact, exact + off * unit, run=1, sizes=other)])
        assert not parity and words in remedy(parity, class_contract, [])
    parity = compared(["y"], [row(exact, exact + 9e-3 * unit, sizes=own)])
    assert "it is wrong at its own size already" in remedy(parity, class_contract, [])


def test_only_scaled_inputs_blame_no_axis(class_contract: Contract) -> None:
    own, two = {"batch": 1, "height": 16, "width": 16}, {"batch": 2, "height": 16, "width": 16}
    cases = (Case(output="y", sizes=own, torch_error=1e-7, onnx_error=1e-7), Case(output="y", sizes=two, torch_error=1e-7, onnx_error=1e-3, factor=16.0))
    parity = Parity(cases=cases, floors={"y": 1e-7}, ranges={"y": 1.0})
    assert not parity and parity.axes_at_fault() == []
    assert "right for ordinary inputs, but not for far stronger or weaker ones" in remedy(parity, class_contract, [])
