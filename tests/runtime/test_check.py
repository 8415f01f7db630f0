from pathlib import Path

import numpy as np
import pytest

from edgeport_runtime import Bundle, load
from edgeport_runtime.check import check, drift_tolerance
from edgeport_runtime.engine import Arrays
from edgeport_runtime.errors import DeviceError


@pytest.mark.parametrize("name", ["classifier", "generator"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_golden_cases_pass_on_this_machine(name: str, precision: str, request: pytest.FixtureRequest) -> None:
    report = load(request.getfixturevalue(name), precision=precision).check()
    assert report
    assert len(report.comparisons) == 4  # two cases, and the images of each one by one
    assert str(report).startswith(f"{precision}: 4 of 4 golden outputs agree")


def test_an_image_alone_is_checked_too(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph may take another way with one image than with several, and only that one may be wrong."""
    engine = load(classifier, precision="int8").engine
    right = engine._run_on
    monkeypatch.setattr(engine, "_run_on", lambda session, arrays: {k: v + (len(v) == 1) for k, v in right(session, arrays).items()})
    report = check(Bundle(classifier), "int8", engine.execution_modes())
    assert [bool(each) for each in report.comparisons] == [True, False, True, False] and "image by image" in str(report)


@pytest.mark.parametrize(
    ("precision", "wrong"),
    [
        ("fp32", lambda y: y + 1e-3),
        ("fp32", lambda y: y * np.float32(1.001)),
        ("fp32", lambda y: np.full_like(y, np.nan)),
        ("fp32", lambda y: y[:, :2]),
        ("int8", lambda y: y + 1.0),
    ],
)
def test_wrong_numbers_fail(classifier: Path, precision: str, wrong) -> None:  # type: ignore[no-untyped-def]
    model = load(classifier, precision=precision)

    def broken(inputs: Arrays) -> Arrays:
        return {name: wrong(value) for name, value in model.engine.run(inputs).items()}

    report = check(Bundle(classifier), precision, {"": broken})
    assert not report
    assert "FAILED" in str(report)


def test_a_pixel_may_be_off_only_at_a_tie(generator: Path) -> None:
    """PyTorch's value before rounding is stored: a level that is one off is caught, because ties are rare."""
    model = load(generator, precision="fp32")
    report = check(Bundle(generator), "fp32", {"": lambda inputs: {name: value ^ 1 for name, value in model.engine.run(inputs).items()}})
    assert not report


def test_int8_of_another_kernel_is_not_hidden_inside_its_own_error(classifier: Path) -> None:
    """fp32's answers are nearer to PyTorch than int8's, and still must not pass for int8's by their distance alone."""
    fp32 = load(classifier, precision="fp32")
    assert not check(Bundle(classifier), "int8", fp32.engine.execution_modes())


def test_drift_tolerance_by_hand() -> None:
    found = drift_tolerance(np.array([1.0, 2.0]), np.array([1.0, 2.4]), floor=1e-6)
    assert found.max_abs == pytest.approx(0.4)
    assert found.rms == pytest.approx(0.5 * 0.4 / 2**0.5)
    exact = drift_tolerance(np.array([1.0]), np.array([1.0]), floor=1e-6)
    assert (exact.max_abs, exact.rms) == (1e-6, 1e-6)


def test_a_variant_that_fails_on_a_golden_case_fails_the_check(classifier: Path) -> None:
    """As a graph with a frozen batch does: told with onnxruntime's words, and the other cases are looked at all the same."""
    bundle = Bundle(classifier)
    model = load(classifier, precision="fp32")

    def run(arrays: Arrays) -> Arrays:
        if len(arrays["pixels"]) == 1:
            raise DeviceError("onnxruntime failed: Got 1 Expected 3")
        return model.engine.run(arrays)

    batches = [len(bundle.tensor(case.inputs[0])) for case in bundle.manifest.golden]
    report = check(bundle, "fp32", {"": run, "alone": lambda arrays: run({name: array[:1] for name, array in arrays.items()})})
    failed = [each for each in report.comparisons if each.fault == "onnxruntime failed: Got 1 Expected 3"]
    assert not report and len(failed) == len(batches) + batches.count(1) and "Got 1 Expected 3" in str(report)
