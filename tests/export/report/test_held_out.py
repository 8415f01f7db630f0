"""Whether images are those that a bundle was judged on, with the stored bundles, whose images are made by a formula."""

import hashlib
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgeport_export.report.facts import BundleFacts
from edgeport_export.report.held_out import HeldOutImages
from edgeport_runtime import Bundle, Example, InputError
from edgeport_runtime.bundle import EVIDENCE

FIXTURES = Path(__file__).parents[2] / "fixtures" / "format2"


@pytest.fixture
def images(tiny: ModuleType) -> list[Example]:
    """As `fixtures/make.py` had them."""
    examples: list[Example] = tiny.brightness_examples(30, seed=2)
    return examples


def changed(tmp_path: Path, image: int, shown: Example) -> BundleFacts:
    """A bundle whose int8 changes the label of one image."""
    folder = Path(shutil.copytree(FIXTURES / "classifier", tmp_path / "bundle"))
    evidence = json.loads((folder / EVIDENCE).read_text())
    digest = hashlib.sha256(b"(16, 16, 3)" + np.asarray(shown.source).tobytes()).hexdigest()
    row = {"image": image, "torch": 0, "answer": 2, "truth": 0, "torch_margin": 0.5, "margin": 0.25, "pixels_sha256": digest}
    evidence["quality"]["changed"]["int8"], evidence["quality"]["changed_images"] = 1, {"int8": [row]}
    (folder / EVIDENCE).write_text(json.dumps(evidence))
    return BundleFacts(Bundle(folder))


def test_the_guess_that_fits_is_taken_and_knows_the_truths(images: list[Example]) -> None:
    facts = BundleFacts(Bundle(FIXTURES / "classifier"))
    found = HeldOutImages(facts, [images[:20], images[::-1], images])
    assert found.examples is images
    golden = facts.bundle.tensor(facts.manifest.golden[0].inputs[0])
    assert [found.truth_of(each) for each in golden] == [0, 1, 2][: len(golden)]
    assert found.truth_of(np.zeros((16, 16, 3), np.uint8)) is None and found.truth_of(np.zeros((8, 8, 3), np.uint8)) is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (slice(0, 20), "there were 30, and 20 were given"),
        (slice(None, None, -1), "the first golden image is none of the first that were given"),
        (slice(0, 0), "there were 30, and 0 were given"),
    ],
)
def test_other_images_are_refused(images: list[Example], given: slice, why: str) -> None:
    with pytest.raises(InputError, match=f"^these are not the held-out images that tiny-classifier was judged on: {why}$"):
        HeldOutImages(BundleFacts(Bundle(FIXTURES / "classifier")), [images[given]])


def test_without_a_guess_there_are_none() -> None:
    with pytest.raises(InputError, match="judged on: there are none"):
        HeldOutImages(BundleFacts(Bundle(FIXTURES / "classifier")), [])


def test_an_image_whose_label_changed_is_known_by_its_hash(images: list[Example], tmp_path: Path) -> None:
    facts = changed(tmp_path, 17, images[17])
    row = facts.changed_images["int8"][0]
    found = HeldOutImages(facts, [images])
    np.testing.assert_array_equal(found.of_row(row), images[17].source)
    assert found.of_row({key: value for key, value in row.items() if key != "pixels_sha256"}) is None
    others = [*images[:17], images[18], *images[18:]]
    with pytest.raises(InputError, match="the one with the number 17 is another"):
        HeldOutImages(facts, [others])


@pytest.mark.parametrize("number", [-1, 30, None, "17", [17]])
def test_a_number_that_is_no_place_is_refused(number: object, images: list[Example], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is another"):
        HeldOutImages(changed(tmp_path, number, images[17]), [images])  # type: ignore[arg-type]
