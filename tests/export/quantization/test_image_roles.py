from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from edgeport_export.quantization import image_roles
from edgeport_export.quantization.image_roles import Images, LabelJudge, calibration_sample, probes_of, roles_of, spread
from edgeport_export.quantization.variants import QuantizableGraph
from edgeport_runtime import Contract, Example


def examples(count: int) -> list[Example]:
    return [Example(source=f"{index}.png", truth=0) for index in range(count)]


def test_a_sample_is_even_ordered_and_repeatable() -> None:
    given = examples(50)
    images = calibration_sample(given, 10)
    assert len(images.sample) == 10 and images == calibration_sample(given, 10)
    assert [given.index(each) for each in images.sample] == sorted(given.index(each) for each in images.sample)
    assert sorted([*images.sample, *images.spare], key=given.index) == given and len(images.spare) == 40
    assert calibration_sample(given, 100) == Images(sample=given)


@pytest.mark.parametrize(
    ("sample", "spare", "fitted", "chosen", "judged", "unseen"),  # judged None: those that chose
    [
        (128, 0, 102, 8, 18, True),  # 26 are held back, 8 of them choose
        (100, 50, 80, 8, 62, True),
        (100, 0, 80, 8, None, True),  # 12 are too few to judge: the same eight choose and judge
        (20, 0, 16, 4, None, True),
        (19, 0, 19, 8, None, False),  # of so few none is held back
        (19, 15, 19, 8, None, False),
        (19, 16, 19, 8, 16, True),
        (3, 0, 3, 3, None, False),
    ],
)
def test_no_image_does_two_things_if_there_are_enough(sample: int, spare: int, fitted: int, chosen: int, judged: int | None, unseen: bool) -> None:
    given = examples(sample + spare)
    roles = roles_of(Images(sample=given[:sample], spare=given[sample:]), None)
    assert (len(roles.fitted), len(roles.chosen), roles.judged and len(roles.judged), roles.unseen) == (fitted, chosen, judged, unseen)
    names = [{each.source for each in part} for part in (roles.fitted, roles.chosen, roles.judged or roles.chosen)]
    assert not unseen or not names[0] & names[2]
    assert judged is None or not names[1] & names[2]


def test_with_truth_the_held_out_images_decide_and_all_others_are_fitted_to() -> None:
    roles = roles_of(Images(sample=examples(100), spare=examples(9)), examples(40))
    assert (len(roles.fitted), len(roles.chosen), len(roles.audited), roles.unseen, roles.judged) == (100, 8, 32, False, None)


@pytest.mark.parametrize("held_out", [None, examples(40)])
@pytest.mark.parametrize(("sample", "expected"), [(100, 80), (20, 16), (19, 0)])
def test_weights_are_rounded_with_others_than_those_that_choose_with_truth_and_without(sample: int, expected: int, held_out: list[Example] | None) -> None:
    given = examples(sample)
    roles = roles_of(Images(sample=given), held_out)
    assert len(roles.rounded_with) == expected and not {each.source for each in roles.rounded_with} & {each.source for each in roles.chosen}
    assert list(roles.rounded_with) == list(roles_of(Images(sample=given), None).rounded_with)  # a replay needs no truth


def test_images_are_taken_from_the_whole_list() -> None:
    given = examples(10)
    assert [each.source for each in spread(given, 4)] == ["0.png", "3.png", "6.png", "9.png"] and spread(given, 99) == given


def test_large_outputs_are_judged_by_fewer_images(
    quantizable: Callable[..., QuantizableGraph], tiny: ModuleType, class_contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, given = quantizable(tiny.trained_classifier(), class_contract), tiny.brightness_examples(60, seed=1)
    roles = roles_of(Images(sample=given[:20], spare=given[20:]), None)
    probes = probes_of(graph, roles.chosen)
    assert len(roles.judged_within(probes)) == 40
    monkeypatch.setattr(image_roles, "JUDGED_BYTES", 4 * int(np.prod(probes.expected[0]["logits"].shape[1:])) * 20)
    assert len(roles.judged_within(probes)) == 20
    monkeypatch.setattr(image_roles, "JUDGED_BYTES", 1)
    assert len(roles.judged_within(probes)) == 8


def test_labels_judge_if_there_are_enough_clear_ones(quantizable: Callable[..., QuantizableGraph], tiny: ModuleType, class_contract: Contract) -> None:
    graph, given = quantizable(tiny.trained_classifier(), class_contract), tiny.brightness_examples(120, seed=1)
    assert LabelJudge.of(graph, given[:60], probes_of(graph, given[60:])) is not None
    assert LabelJudge.of(graph, given[:60], probes_of(graph, given[60:85])) is None  # 25 on one side
    assert LabelJudge.of(graph, given[:25], probes_of(graph, given[25:])) is None
