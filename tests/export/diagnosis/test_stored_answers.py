from dataclasses import replace

import numpy as np
import pytest

from edgeport_export.diagnosis.stored_answers import stored_answers
from edgeport_export.network.reference import TorchReference
from edgeport_export.validation.parity import Parity
from edgeport_export.validation.sweep import measure_parity
from edgeport_runtime import Bundle
from edgeport_runtime.manifest import File, Tolerance


@pytest.fixture
def parity(reference: TorchReference, bundle: Bundle) -> Parity:
    return measure_parity(reference, bundle.read(bundle.variant("fp32")), sizes=[{"batch": 2, "height": 16, "width": 16}])


def test_the_stored_answers_of_a_sound_bundle_are_pytorchs(bundle: Bundle, reference: TorchReference, parity: Parity) -> None:
    found = stored_answers(bundle, reference, parity)
    assert found and len(found.comparisons) == len(bundle.manifest.golden) and str(found).endswith("stored answers are PyTorch's")


def test_an_altered_answer_is_found(bundle: Bundle, reference: TorchReference, parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a thousandth of the range, which the manifest's own tolerance, if it was altered too, would allow."""
    read = Bundle.tensor

    def altered(self: Bundle, file: File) -> np.ndarray:
        array = read(self, file)
        return array + np.float32(1e-3 * np.ptp(array)) if file.file == "test_data_set_0/output_0.pb" else array

    monkeypatch.setattr(Bundle, "tensor", altered)
    found = stored_answers(bundle, reference, parity)
    assert not found and "FAILED the stored answer of test_data_set_0/logits" in str(found) and "is not PyTorch's: the golden case was altered" in str(found)


def test_a_tolerance_that_cannot_fail_is_found(bundle: Bundle, reference: TorchReference, parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = tuple(replace(case, tolerance={**case.tolerance, "fp32": (Tolerance(max_abs=1.0),)}) for case in bundle.manifest.golden)
    monkeypatch.setattr(bundle, "manifest", replace(bundle.manifest, golden=cases))
    found = stored_answers(bundle, reference, parity)
    assert not found and len(found.loose) == 1 and "FAILED the stored tolerance of logits, 1, is " in str(found)
