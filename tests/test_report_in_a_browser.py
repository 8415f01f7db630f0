"""Reports in a real Chromium, without a window: two widths, light and dark. Debian's `chromium` has to be installed; nothing is downloaded."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeport_export import verify
from edgeport_export.network.image_hash import pixels_sha256
from edgeport_export.report.page import Subject, report_page
from edgeport_runtime import Bundle
from edgeport_runtime.bundle import EVIDENCE
from edgeport_runtime.json_text import strict_json

FIXTURES = Path(__file__).parent / "fixtures"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = (390, 1280)
SERIOUS = ("serious", "critical")
pytestmark = [pytest.mark.long, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here (Debian's package of this name)")]
PAGES = {
    "a classifier": ["format2/classifier"],
    "a generator": ["format2/generator"],
    "two side by side": ["format2/classifier", "format2/generator"],
    "format 1": ["format1/classifier"],
}
BESIDE = "with all that can be beside it"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    found = {}
    for name, folders in PAGES.items():
        found[name] = folder / f"{name.replace(' ', '-')}.html"
        found[name].write_text(report_page([Bundle(FIXTURES / each) for each in folders]), encoding="utf-8")
    found[BESIDE] = folder / "beside.html"
    found[BESIDE].write_text(report_page([beside(folder / "bundle")]), encoding="utf-8")
    return found


def beside(folder: Path) -> Subject:
    """A bundle with changed labels, its held-out images, and what verify found."""
    spec = importlib.util.spec_from_file_location("make_fixtures", FIXTURES / "make.py")
    assert spec is not None and spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    shutil.copytree(FIXTURES / "format2" / "classifier", folder)
    images = tiny.brightness_examples(30, seed=2)
    evidence = json.loads((folder / EVIDENCE).read_text())
    row = {"torch": 0, "answer": 2, "truth": 1, "torch_margin": 0.5, "margin": 0.25}
    rows = [{**row, "image": number, "pixels_sha256": pixels_sha256(images[number].source)} for number in (4, 17)]
    evidence["quality"]["changed"]["int8"], evidence["quality"]["changed_images"] = 2, {"fp32": [], "int8": rows}
    (folder / EVIDENCE).write_text(json.dumps(evidence))
    bundle = Bundle(folder)
    found = verify(bundle, tiny.trained_classifier(), stages=True)
    return Subject(bundle=bundle, guesses=[images], verification=json.loads(strict_json(found.to_dict())))


def opened(browser: Any, path: Path, width: int, scheme: str, **options: Any) -> tuple[Any, list[str], list[str]]:
    """The page, what the console printed, and what was asked for outside of it."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options).new_page()
    console, asked = list[str](), list[str]()
    page.on("console", lambda message: console.append(message.text))
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    return page, console, [url for url in asked if url != path.as_uri() and not url.startswith("data:")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [*PAGES, BESIDE])
def test_a_page_is_whole_and_for_everybody(name: str, width: int, scheme: str, browser: Any, pages: dict[str, Path]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page, console, asked = opened(browser, pages[name], width, scheme, bypass_csp=True)  # or axe would not be let in
    assert console == [] and asked == []
    assert page.evaluate("[...document.images].filter(each => !each.naturalWidth).length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for details in page.query_selector_all("summary"):
        details.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in SERIOUS] == []
    page.context.close()


def test_its_figures_are_the_files(browser: Any, pages: dict[str, Path]) -> None:
    page, *_ = opened(browser, pages["a classifier"], 1280, "light")
    evidence = json.loads((FIXTURES / "format2" / "classifier" / EVIDENCE).read_text())
    for precision, figures in evidence["summary"]["variants"].items():
        cells = [each.inner_text() for each in page.query_selector_all(f"tr[data-variant={precision}] > *")]
        assert cells[2] == f"{figures['bytes'] / 1000:,.1f} kB" and cells[3] == f"{figures['quality']:.2%}"
        assert cells[5].split("\n") == [f"{ms:.3f} at {batch}" for batch, ms in figures["ms_per_call"].items()]
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    for name, found in evidence["int8"]["findings"].items():
        cells = [each.inner_text() for each in page.query_selector_all(f'tr[data-product="{name}"] > *')]
        assert cells[:2] == [name, f"{found['macs']:,}"] and float(cells[3]) == found["sqnr_db"]
    page.context.close()


def test_what_is_beside_it_is_on_the_page(browser: Any, pages: dict[str, Path]) -> None:
    page, *_ = opened(browser, pages[BESIDE], 1280, "light")
    for section in ("verified", "stages", "changed", "pictures"):
        assert page.query_selector(f"#b1-{section} h3").is_visible()
    names = [each.inner_text() for each in page.query_selector_all("tr[data-stage] > th")]
    assert names[:3] == ["decode", "resize", "normalize"] and names[-1] == "end to end" and "int8" in names
    assert [each.inner_text() for each in page.query_selector_all("#b1-changed figcaption b")] == ["image 4", "image 17"]
    assert page.query_selector_all("#b1-pictures .row")[0].inner_text().split("\n")[-2:] == ["truth", "dark"]
    page.context.close()


def test_pointing_at_a_module_or_stepping_to_it_shows_its_figures(browser: Any, pages: dict[str, Path]) -> None:
    page, *_ = opened(browser, pages["a classifier"], 1280, "light")
    modules, cards = page.query_selector_all("#b1-structure .module"), page.query_selector_all("#b1-structure .card")
    assert len(modules) == len(cards) > 2 and not any(each.is_visible() for each in cards)
    modules[1].hover()
    assert [each.is_visible() for each in cards][:3] == [False, True, False]
    page.mouse.move(0, 0)
    modules[2].focus()
    assert [each.is_visible() for each in cards][:3] == [False, False, True]
    page.context.close()


def test_every_chart_is_there_and_has_its_words(browser: Any, pages: dict[str, Path]) -> None:
    expected = {
        "a generator": {"tradeoff", "parity", "plan", "order", "curve", "recovery", "clipping"},
        BESIDE: {"stages", "tradeoff", "parity", "plan", "order"},
    }
    for name, charts in expected.items():
        page, *_ = opened(browser, pages[name], 1280, "light")
        for chart in charts:
            drawing = page.query_selector(f"svg[aria-labelledby=b1-{chart}-chart-says]")
            assert drawing.is_visible() and len(page.query_selector(f"#b1-{chart}-chart-says").text_content()) > 30, chart
        page.context.close()


def test_the_network_can_be_stepped_through_with_the_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    page, *_ = opened(browser, pages["a classifier"], 1280, "light")
    page.evaluate("document.querySelector('#b1-structure .tall').focus()")
    told = []
    for _ in range(3):
        page.keyboard.press("Tab")
        told.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert all(told) and len(set(told)) == 3
    before = page.evaluate("getComputedStyle(document.querySelector('.module:focus rect')).strokeWidth")
    assert before == "5px"
    page.context.close()


def test_dark_and_light_differ_and_paper_is_printed_in_full(browser: Any, pages: dict[str, Path]) -> None:
    colors = {}
    for scheme in ("light", "dark"):
        page, *_ = opened(browser, pages["a generator"], 1280, scheme)
        colors[scheme] = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('.chart text')).fill]")
        page.context.close()
    assert colors["light"][0] != colors["dark"][0] and colors["light"][1] != colors["dark"][1]
    page, *_ = opened(browser, pages["a generator"], 1280, "light")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.querySelector('.tall')).maxHeight") == "none"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    page.context.close()


def test_hostile_text_runs_nothing(browser: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES / "format2" / "classifier", tmp_path / "bundle"))
    evidence = json.loads((folder / EVIDENCE).read_text())
    evidence["summary"]["warnings"] = ["<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"]
    (folder / EVIDENCE).write_text(json.dumps(evidence))
    (tmp_path / "page.html").write_text(report_page([Bundle(folder)]), encoding="utf-8")
    page, console, asked = opened(browser, tmp_path / "page.html", 390, "light")
    assert page.title() == "tiny-classifier" and console == [] and asked == []
    page.context.close()
