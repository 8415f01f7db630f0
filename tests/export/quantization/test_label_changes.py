import numpy as np
import pytest

from edgeport_export.quantization.label_changes import LabelChanges, clear_labels, label_changes, share_interval


def logits(*probabilities: tuple[float, ...]) -> np.ndarray:
    return np.log(np.array(probabilities)).astype(np.float32) + 7


def test_a_label_is_clear_if_the_two_best_probabilities_are_a_tenth_apart() -> None:
    found = clear_labels([logits((0.5, 0.3, 0.2), (0.45, 0.36, 0.19)), logits((0.2, 0.449, 0.351), (0.2, 0.453, 0.347))])
    assert found.tolist() == [True, False, False, True]
    assert clear_labels([np.array([[800.0, -800.0], [3.0, 3.0]])]).tolist() == [True, False]
    assert clear_labels([np.array([[4.0]])]).tolist() == [False]  # of one class no label is told


def test_changes_are_counted_apart() -> None:
    before = [logits((0.6, 0.4), (0.6, 0.4), (0.7, 0.3), (0.52, 0.48)), logits((0.48, 0.52))]
    after = [logits((0.9, 0.1), (0.4, 0.6), (0.2, 0.8), (0.4, 0.6)), logits((0.1, 0.9))]
    found = label_changes(before, after)
    assert found == LabelChanges(images=5, clear=3, clear_changed=2, close_changed=1) and round(found.percent, 1) == 66.7


@pytest.mark.parametrize(
    ("changed", "clear", "least", "most"),  # Wilson's interval, from Newcombe (1998), Table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18), (0, 0, 0.0, 100.0)],
)
def test_the_interval_is_wilsons(changed: int, clear: int, least: float, most: float) -> None:
    assert share_interval(changed, clear) == (pytest.approx(least / 100, abs=6e-5), pytest.approx(most / 100, abs=6e-5))
    assert LabelChanges(images=clear, clear=clear, clear_changed=changed, close_changed=0).most_percent == pytest.approx(most, abs=0.006)


def test_it_is_told_in_words() -> None:
    found = LabelChanges(images=100, clear=85, clear_changed=0, close_changed=4)
    assert str(found) == "changes 0 of 85 clear labels (at most 4.3% at 95%) and 4 of 15 close ones"
    assert str(LabelChanges(images=85, clear=85, clear_changed=3, close_changed=0)) == "changes 3 of 85 clear labels (at most 9.9% at 95%)"
