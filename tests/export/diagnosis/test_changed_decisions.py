import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeport_export.diagnosis.changed_decisions import PATCH, ImageParity, LabelParity, task_parity, write_changes
from edgeport_export.diagnosis.inputs import InputCase
from edgeport_export.quantization.budget import Budget
from edgeport_runtime import Contract, Example


def cases(truths: list[int | None], size_px: int = 4) -> list[InputCase]:
    """One case of all images; each image's level is its number."""
    pixels = np.stack([np.full((size_px, size_px, 3), index, np.uint8) for index in range(len(truths))])
    return [InputCase(name="images", arrays={"pixels": pixels}, examples=tuple(Example(source=f"{i}.png", truth=t) for i, t in enumerate(truths)))]


def logits(*rows: tuple[float, float, float]) -> list[np.ndarray]:
    return [np.array(rows, np.float32)]


SURE, CLOSE, OTHER = (9.0, 0.0, 0.0), (1.0, 0.95, 0.0), (0.0, 9.0, 0.0)


def labels(class_contract: Contract, truths: list[int | None], before: list[np.ndarray], after: list[np.ndarray], **budget: float) -> LabelParity:
    found = task_parity(class_contract, cases(truths), before, after, Budget(**budget))
    assert isinstance(found, LabelParity)
    return found


def test_changed_labels_are_told_with_margins_the_surest_first(class_contract: Contract) -> None:
    """The margin of (1, 0.95, 0): e, e^0.95 and 1 over their sum."""
    found = labels(class_contract, [0, 0, 0], logits(CLOSE, SURE, SURE), logits((0.95, 1.0, 0.0), OTHER, SURE))
    assert [(each.image, each.before, each.after, each.truth) for each in found.changed] == [("1.png", 0, 1, 0), ("0.png", 0, 1, 0)]
    total = math.exp(1) + math.exp(0.95) + 1
    assert found.changed[1].margin_before == pytest.approx((math.exp(1) - math.exp(0.95)) / total)
    assert found.changed[0].margin_before == pytest.approx((math.exp(9) - 1) / (math.exp(9) + 2))
    assert found.before is not None and found.after is not None and (found.before.right, found.after.right) == (3, 1)


@pytest.mark.parametrize(
    ("wrong", "count", "budget", "decides", "passes"),
    [
        (1, 200, 0.5, True, True),  # half a point, which is allowed
        (2, 200, 0.5, True, False),
        (2, 40, 0.5, True, False),  # too few for accuracy, enough clear labels: 5 % of them change
        (1, 20, 0.5, False, False),  # too few for anything
        (1, 20, 5.0, True, True),
    ],
)
def test_accuracy_decides_if_one_image_weighs_no_more_than_the_budget(
    class_contract: Contract, wrong: int, count: int, budget: float, decides: bool, passes: bool
) -> None:
    after = [OTHER] * wrong + [SURE] * (count - wrong)
    found = labels(class_contract, [0] * count, logits(*[SURE] * count), logits(*after), max_drop=budget)
    assert (found.decides, bool(found)) == (decides, passes)
    assert ("FAILED" in str(found)) is (decides and not passes)


def test_without_truths_clear_labels_decide(class_contract: Contract) -> None:
    before, after = logits(*[SURE] * 100, *[CLOSE] * 5), logits(OTHER, *[SURE] * 99, *[(0.95, 1.0, 0.0)] * 5)
    found = labels(class_contract, [None] * 105, before, after)
    assert found.before is None and found.decides and found and found.changes.clear_changed == 1 and found.changes.close_changed == 5
    assert not labels(class_contract, [None] * 105, before, after, max_changed=0.5)


def test_worst_patches_psnr_and_targets(image_contract: Contract) -> None:
    """One patch of 64x64 pixels is off by 16 levels: 10 log10(255^2 / 256) dB there, a quarter of its error over the whole image."""
    side = 2 * PATCH
    before = np.full((1, side, side, 3), 100.0, np.float32)
    after = before.copy()
    after[0, PATCH:, :PATCH] += 16
    target = np.full((side, side, 3), 100, np.uint8)
    given = [InputCase(name="a", arrays={"pixels": np.zeros((1, side, side, 3), np.uint8)}, examples=(Example(source="a.png", truth=target),))]
    found = task_parity(image_contract, given, [before], [after], Budget(max_drop=0.5))
    assert isinstance(found, ImageParity) and found.decides and not found
    assert [(each.top, each.left) for each in found.patches] == [(PATCH, 0)]
    assert found.patches[0].psnr_db == pytest.approx(10 * math.log10(255**2 / 256))
    assert found.psnr_db == found.truth_after_db == pytest.approx(10 * math.log10(255**2 / 64)) and found.truth_before_db == math.inf
    untold = task_parity(image_contract, [InputCase(name="a", arrays=given[0].arrays, examples=(Example(source="a.png"),))], [before], [after], Budget())
    assert untold is not None and not untold.decides and untold


def test_other_tasks_have_no_measure_of_their_own(class_contract: Contract) -> None:
    embedding = Contract(**{**vars(class_contract), "task": "embedding", "labels": ()})
    assert task_parity(embedding, cases([None]), logits(SURE), logits(OTHER), Budget()) is None


def test_changes_are_written_as_json_and_png(class_contract: Contract, image_contract: Contract, tmp_path: Path) -> None:
    given, before, after = cases([0, 0]), logits(SURE, SURE), logits(SURE, OTHER)
    found = labels(class_contract, [0, 0], before, after)
    write_changes(tmp_path / "labels", found, class_contract, given, before, after)
    told = json.loads((tmp_path / "labels" / "changes.json").read_text())
    assert told["kind"] == "labels" and len(told["changes"]) == 1
    row = told["changes"][0]
    assert (row["image"], row["before"], row["after"], row["truth"]) == ("1.png", "dark", "middle", "dark")
    assert np.array(Image.open(tmp_path / "labels" / row["file"])).tolist() == given[0].arrays["pixels"][1].tolist()
    images = [np.zeros((1, PATCH, PATCH, 3), np.float32), np.full((1, PATCH, PATCH, 3), 8.0, np.float32)]
    one = cases([None], PATCH)
    patches = task_parity(image_contract, one, images[:1], images[1:], Budget())
    assert patches is not None
    write_changes(tmp_path / "patches", patches, image_contract, one, images[:1], images[1:])
    shown = np.array(Image.open(tmp_path / "patches" / "000.png"))
    assert shown.shape == (PATCH, 2 * PATCH, 3) and shown[0, 0].tolist() == [0, 0, 0] and shown[0, -1].tolist() == [8, 8, 8]
