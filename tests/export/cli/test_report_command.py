"""`edgeport report` from the outside."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from edgeport_export import ExportOptions, verify
from edgeport_export.cli.app import main
from edgeport_export.cli.report_command import read_verification
from edgeport_runtime import Contract, InputError
from edgeport_runtime.evaluation import folder_examples
from edgeport_runtime.json_text import strict_json

FIXTURES = Path(__file__).parents[2] / "fixtures"
CLASSIFIER, GENERATOR = str(FIXTURES / "format2" / "classifier"), str(FIXTURES / "format1" / "generator")


def test_a_page_and_a_card_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, card = tmp_path / "page.html", tmp_path / "README.md"
    assert main(["report", CLASSIFIER, "--out", str(page), "--card", str(card)]) == 0
    assert capsys.readouterr().out.split() == ["written:", str(page), "written:", str(card)]
    assert page.read_text().startswith("<!DOCTYPE html>") and "data:image" in page.read_text() and card.read_text().startswith("---\n")
    assert main(["report", CLASSIFIER, GENERATOR, "--out", str(tmp_path / "two.html"), "--no-images"]) == 0
    assert "side-by-side" in (tmp_path / "two.html").read_text() and "data:image" not in (tmp_path / "two.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CLASSIFIER, "--out", "there.html"], "there.html exists already; give another file, or replace it (--force)"),
        ([CLASSIFIER, "--card", "there.html"], "there.html exists already"),
        ([CLASSIFIER, GENERATOR, "--card", "x.md"], "--card is of one bundle, got 2: leave it out, or name one bundle"),
        ([CLASSIFIER, GENERATOR, "--held-out", "digits"], "--held-out is of one bundle, got 2"),
        ([CLASSIFIER, GENERATOR, "--verification", "there.html"], "--verification is of one bundle, got 2"),
        ([CLASSIFIER, "--held-out", "digits", "--no-images"], "--held-out shows images, and --no-images leaves them out: give one of the two"),
        ([CLASSIFIER, "--held-out", "nowhere"], "nowhere cannot be the held-out images of tiny-classifier"),
        ([CLASSIFIER, "--held-out", "photos"], "photos cannot be the held-out images of tiny-classifier"),
        ([CLASSIFIER, "--out", "same.html", "--card", "same.html"], "same.html is the other file to write: give another file"),
        ([CLASSIFIER, "--out", "folder"], "folder is a folder: give the name of a file (--out, --card)"),
        ([CLASSIFIER, "--out", "folder", "--force"], "folder is a folder: give the name of a file (--out, --card)"),
        ([CLASSIFIER, "--out", f"{CLASSIFIER}/manifest.json", "--force"], "manifest.json is a file of the bundle: give another file"),
        ([CLASSIFIER, "--out", "there.html", "--verification", "there.html", "--force"], "there.html is the verification: give another file"),
        ([CLASSIFIER, "--verification", "nowhere.json"], "nowhere.json: expected what `edgeport verify BUNDLE --stages --json` prints, and it cannot be read"),
        ([CLASSIFIER, "--verification", "there.html"], "there.html: expected what `edgeport verify BUNDLE --stages --json` prints, and it cannot be read"),
        (["nowhere"], "expected a bundle (a folder with manifest.json), but there is no such folder"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "folder").mkdir()
    assert main(["report", *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "there.html"] and (tmp_path / "there.html").read_text() == "mine"


def test_a_file_is_replaced_if_asked_for(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("old")
    assert main(["report", CLASSIFIER, "--out", str(tmp_path / "page.html"), "--force"]) == 0
    assert json.dumps("old") not in (tmp_path / "page.html").read_text() and len((tmp_path / "page.html").read_text()) > 10_000


def test_what_verify_printed_and_the_images_that_judged_are_shown(
    make_bundle: Callable[..., Path], tiny: ModuleType, class_contract: Contract, fixed_latencies: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, example in enumerate(tiny.brightness_examples(9, seed=3)):
        place = tmp_path / "judges" / class_contract.labels[example.truth]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(example.source).save(place / f"{index}.png")
    bundle = make_bundle(tmp_path / "b", held_out=folder_examples(class_contract, tmp_path / "judges"), options=ExportOptions(precisions=("fp32",)))
    found = verify(bundle, tiny.trained_classifier(), stages=True)
    (tmp_path / "found.json").write_text(strict_json(found.to_dict()))
    beside = ["--verification", str(tmp_path / "found.json"), "--held-out", str(tmp_path / "judges")]
    assert main(["report", str(bundle), "--out", str(tmp_path / "page.html"), *beside]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "nothing against the bundle" in page and 'data-stage="resize"' in page and "<b>truth</b>bright" in page  # the first folder
    capsys.readouterr()
    assert main(["report", CLASSIFIER, "--out", str(tmp_path / "other.html"), *beside[:2]]) == 2
    assert "this verification is of another bundle" in capsys.readouterr().err
    next((tmp_path / "judges").rglob("*.png")).unlink()
    assert main(["report", str(bundle), "--out", str(tmp_path / "other.html"), *beside[2:]]) == 2
    assert "these are not the held-out images that tiny was judged on: there were 9, and 8 were given" in capsys.readouterr().err
    assert not (tmp_path / "other.html").exists()


def test_json_of_another_kind_is_no_verification(tmp_path: Path) -> None:
    for content in ("[]", "5", "{}", '{"passed": true}'):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(InputError, match="expected what `edgeport verify BUNDLE --stages --json` prints, got something else"):
            read_verification(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="it cannot be read"):
        read_verification(tmp_path / "x.json")
