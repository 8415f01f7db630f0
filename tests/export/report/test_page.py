"""The page and the card: sections by id, escaped text, nothing typed; a browser looks at them in tests/test_report_in_a_browser.py."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from edgeport_export import OutputError
from edgeport_export.report.page import TEMPLATES, Subject, model_card, report_page, write_texts
from edgeport_runtime import Bundle
from edgeport_runtime.bundle import EVIDENCE, MANIFEST
from edgeport_runtime.manifest import sealed

FIXTURES = Path(__file__).parents[2] / "fixtures"
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7717*3 }}'


class Reader(HTMLParser):
    """Ids, links and tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [str(given["id"])] if "id" in given else []
        self.links += [str(given["href"])] if tag == "a" else []
        self.handlers += [name for name in given if name.startswith("on")]


def test_sections_have_ids_and_every_link_leads_to_one() -> None:
    read = Reader(report_page([Bundle(FIXTURES / "format2" / "generator"), Bundle(FIXTURES / "format1" / "classifier")]))
    assert len(set(read.ids)) == len(read.ids)
    for key, names in (("b1", ("decision", "variants", "parity", "plan", "pictures", "structure", "made")), ("b2", ("decision", "variants", "plan", "made"))):
        assert {f"{key}-{name}" for name in names} <= set(read.ids)
    assert "side-by-side" in read.ids and read.links and all(link.removeprefix("#") in read.ids for link in read.links)
    assert "script" not in read.tags and "iframe" not in read.tags


def test_without_images_there_are_none() -> None:
    bundle = Bundle(FIXTURES / "format2" / "classifier")
    with_images, without = report_page([bundle]), report_page([bundle], images=False)
    assert "data:image" in with_images and "b1-pictures" in with_images
    assert "data:image" not in without and "<img" not in without and "b1-pictures" not in without


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A bundle whose labels, name, reasons, products and evidence are written by an attacker."""
    folder = Path(shutil.copytree(FIXTURES / "format2" / "classifier", tmp_path / "bundle"))
    data: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    data["name"] = HOSTILE
    data["auto"]["reason"] = HOSTILE
    data["contract"]["labels"] = [HOSTILE, "b", "c"]
    data["provenance"][HOSTILE] = HOSTILE
    (folder / MANIFEST).write_text(json.dumps(sealed(data)))
    evidence = json.loads((folder / EVIDENCE).read_text())
    evidence["summary"]["warnings"] = [HOSTILE]
    evidence["machine"] = {HOSTILE: HOSTILE, "processor": HOSTILE, "threads": HOSTILE}
    evidence["quality"]["metric"] = HOSTILE
    evidence["quality"]["changed"]["int8"] = 1
    evidence["quality"]["changed_images"] = {"int8": [{"image": HOSTILE, "torch": 0, "answer": 1, "truth": HOSTILE, "torch_margin": 0.5, "margin": 0.1}]}
    evidence["int8"]["audit"]["clipped"] = [{"layer": HOSTILE, "value": HOSTILE, "share": 0.5}]
    evidence["parity"]["fp32"]["cases"][0]["output"] = HOSTILE
    (folder / EVIDENCE).write_text(json.dumps(evidence))
    return folder


def test_hostile_text_does_nothing(hostile: Path) -> None:
    page = report_page([Bundle(hostile)])
    read = Reader(page)
    assert "script" not in read.tags and not read.handlers and "23151" not in page
    assert page.count("&lt;script&gt;alert(1)") > 8
    assert "default-src 'none'" in page  # and if something were missed, the browser would not run it


def test_hostile_text_makes_no_markdown(hostile: Path) -> None:
    card = model_card(Bundle(hostile))
    body = card.split("---", 2)[2]
    assert "<script>" not in body and "\\<script\\>" in body and "{{ 7717*3 }}" not in body
    assert yaml.safe_load(card.split("---", 2)[1])["library_name"] == "edgeport"


def test_the_card_has_the_files_figures() -> None:
    folder = FIXTURES / "format2" / "classifier"
    card, evidence = model_card(Bundle(folder)), json.loads((folder / EVIDENCE).read_text())
    front = yaml.safe_load(card.split("---", 2)[1])
    assert front == {"library_name": "edgeport", "tags": ["onnx", "onnxruntime", "edgeport", "fp32", "int8"], "pipeline_tag": "image-classification"}
    times = evidence["summary"]["variants"]["int8"]["ms_per_call"]
    assert f"{times['1']:.3f} at 1, {times['8']:.3f} at 8" in card and "Labels: dark, middle, bright." in card and Bundle(folder).sha256 in card
    assert "pipeline_tag" in model_card(Bundle(FIXTURES / "format1" / "generator"))


def test_changed_labels_are_told_with_their_margins(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES / "format2" / "classifier", tmp_path / "bundle"))
    evidence = json.loads((folder / EVIDENCE).read_text())
    evidence["quality"]["changed"]["int8"] = 1
    evidence["quality"]["changed_images"] = {"fp32": [], "int8": [{"image": 17, "torch": 0, "answer": 2, "truth": 0, "torch_margin": 0.0625, "margin": 0.125}]}
    (folder / EVIDENCE).write_text(json.dumps(evidence))
    page = re.sub(r"\s+", " ", report_page([Bundle(folder)]))
    assert "int8: 1 of 30 labels differ from PyTorch's. Margins" in page
    row = '17</th><td>dark</td><td class="number">0.062</td><td>bright</td><td class="number">0.125</td><td>dark</td>'
    assert row in page


def test_characters_that_turn_the_writing_are_seen(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES / "format2" / "classifier", tmp_path / "bundle"))
    data = json.loads((folder / MANIFEST).read_text())
    data["contract"]["labels"][0], data["name"] = "da\u202erk", "na\u200bme"
    (folder / MANIFEST).write_text(json.dumps(sealed(data)))
    for text in (report_page([Bundle(folder)]), model_card(Bundle(folder))):
        assert "\u202e" not in text and "\u200b" not in text and "u202e" in text and "u200b" in text


def test_evidence_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES / "format2" / "classifier", tmp_path / "bundle"))
    (folder / EVIDENCE).write_text("{")
    assert "What it held is missing here." in report_page([Bundle(folder)])
    (folder / EVIDENCE).unlink()
    assert "What it held is missing here." not in report_page([Bundle(folder)])


def test_format_1_agrees_with_itself() -> None:
    page = re.sub(r"\s+", " ", report_page([Bundle(FIXTURES / "format1" / "classifier")]))
    assert "agrees</span> with PyTorch at 18 comparisons" in page and page.count("<td>yes</td></tr>") >= 18 and "<td>no</td></tr>" not in page
    assert "on 0 images" not in page and "0.84\N{MULTIPLICATION SIGN} <span" in page and "b1-clipping-chart" in page
    assert "labels changed" not in report_page([Bundle(FIXTURES / "format1" / "generator")])


def test_what_is_beside_a_bundle_has_its_sections(tiny: ModuleType) -> None:
    bundle = Bundle(FIXTURES / "format2" / "classifier")
    stages: list[dict[str, Any]] = [
        {"name": name, "largest": 0.5, "rms": rms, "changed": 2, "note": HOSTILE} for name, rms in (("resize", 0.0625), ("end to end", 0.0))
    ]
    found = {"manifest_sha256": bundle.sha256, "passed": True, "golden": {"fp32": True}, "stages": {"images": 16, "stages": stages}}
    page = report_page([bundle, Subject(bundle=bundle, guesses=[tiny.brightness_examples(30, seed=2)], verification=found)])
    read = Reader(page)
    assert {"b2-verified", "b2-stages"} <= set(read.ids) and not {"b1-verified", "b1-stages"} & set(read.ids)
    assert all(link.removeprefix("#") in read.ids for link in read.links) and "script" not in read.tags
    assert '<tr data-stage="resize"><th scope="row">resize</th><td class="number">5.0e-01</td><td class="number">6.2e-02</td><td class="number">2</td>' in page
    assert 'data-stage="end to end"' in page and '<td class="number">0</td>' in page and "<b>truth</b>" in page
    plain = report_page([Subject(bundle=bundle, verification={**found, "passed": False})], images=False)
    assert "something against the bundle" in plain and "something against" not in page


def test_the_same_bundle_gives_the_same_page() -> None:
    bundle = Bundle(FIXTURES / "format2" / "generator")
    assert report_page([bundle]) == report_page([bundle])


def test_files_are_written_whole_and_together_or_not_at_all(tmp_path: Path) -> None:
    assert [each.read_text() for each in write_texts({tmp_path / "new" / "x.html": "a", tmp_path / "y.md": "b"})] == ["a", "b"]
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OutputError, match=r"folder\.html is a folder: give the name of a file for the report"):
        write_texts({tmp_path / "y.md": "changed", tmp_path / "folder.html": "a"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.html", "new", "y.md"] and (tmp_path / "y.md").read_text() == "b"


def test_the_demos_page_in_the_documents_is_one_of_today() -> None:
    text = (Path(__file__).parents[3] / "docs" / "demo-report.html").read_text()
    read = Reader(text)
    sections = ("decision", "variants", "parity", "verified", "stages", "plan", "pictures", "structure", "made")
    assert {f"b{key}-{name}" for key in range(1, 5) for name in sections} <= set(read.ids)
    assert (TEMPLATES / "page.css").read_text() in text and "script" not in read.tags
    assert text.count("<b>clean</b>") == 3 and text.count("nothing against the bundle") == 4 and "/tmp/" not in text
