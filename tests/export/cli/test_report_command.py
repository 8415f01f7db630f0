"""`edgeport report` from the outside."""

import json
from pathlib import Path

import pytest

from edgeport_export.cli.app import main

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
        ([CLASSIFIER, GENERATOR, "--card", "x.md"], "a model card is of one bundle, got 2"),
        (["nowhere"], "expected a bundle (a folder with manifest.json), but there is no such folder"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("mine")
    assert main(["report", *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.html"] and (tmp_path / "there.html").read_text() == "mine"


def test_a_file_is_replaced_if_asked_for(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("old")
    assert main(["report", CLASSIFIER, "--out", str(tmp_path / "page.html"), "--force"]) == 0
    assert json.dumps("old") not in (tmp_path / "page.html").read_text() and len((tmp_path / "page.html").read_text()) > 10_000
