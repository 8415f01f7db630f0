"""Folders of `edgeport deploy` on their own engines: golden cases pass there, the page is for everybody, Triton's own schema reads the configuration."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from edgeport_export import ExportOptions, ImageTask, export_bundle
from edgeport_export.deploy.mlserver import deploy_mlserver
from edgeport_export.deploy.node import deploy_node
from edgeport_export.deploy.triton import deploy_triton
from edgeport_export.deploy.web import deploy_web
from edgeport_runtime import Bundle, DetectionHead, EdgeportError, Pixels, Range, load

ROOT = Path(__file__).parents[1]
BUNDLES = sorted((ROOT / "tests" / "fixtures" / "format2").iterdir())
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SERVERS = ROOT / ".venv-deploy" / "bin" / "python"
READ = """
import sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
print(json_format.MessageToJson(text_format.Parse(open(sys.argv[1]).read(), model_config_pb2.ModelConfig()), preserving_proto_field_name=True))
"""
YELLOW = """(canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.filter((level, i) => i % 4 === 0 && level === 255 && data[i + 1] === 212 && data[i + 2] === 0).length;
}"""
pytestmark = pytest.mark.long
spec = spec_from_file_location("golden_engines", ROOT / "tests" / "bench" / "golden_engines.py")
assert spec is not None and spec.loader is not None
engines = module_from_spec(spec)
sys.modules["golden_engines"] = engines  # dataclasses look there
spec.loader.exec_module(engines)


@pytest.mark.parametrize("engine", list(engines.ENGINES))
def test_golden_cases_pass_on_every_engine_that_is_here(engine: str) -> None:
    for folder in BUNDLES:
        for precision in ("fp32", "int8"):
            try:
                row = engines.ENGINES[engine](Bundle(folder), precision)
            except engines.MissingError as missing:
                pytest.skip(f"missing here: {missing}")
            assert row.passed == row.total > 0, row
            assert row.share is None or row.share < (0.01 if "generator" in row.bundle or precision == "int8" else 1e-5), row  # pixels are rounded


def test_an_engine_that_gives_other_numbers_is_told() -> None:
    bundle = Bundle(BUNDLES[0])
    row = engines.compared(bundle, "fp32", "x", lambda _: lambda case: {name: values + 0.5 for name, values in case.expected.items()})
    assert row.passed == 0 < row.total and "largest difference 0.5" in row.why
    row = engines.compared(bundle, "fp32", "x", lambda _: lambda case: 1 / 0)
    assert row.passed == 0 < row.total and "ZeroDivisionError" in row.why


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    for bundle in BUNDLES:
        try:
            deploy_web(Bundle(bundle), folder / bundle.name)
        except EdgeportError as error:
            pytest.skip(f"missing here: {error}")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("missing here: chromium (Debian's package of this name)")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as started:
        opened = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        )
        yield opened
        opened.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
@pytest.mark.parametrize("name", [each.name for each in BUNDLES])
def test_the_page_answers_images_and_nothing_leaves_it(name: str, width: int, scheme: str, pages: Path, browser: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with engines.served(pages / name) as address:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)  # or axe would not be let in
        page, console, asked = context.new_page(), list[str](), list[str]()
        page.on("console", lambda message: console.append(message.text))
        page.on("pageerror", lambda error: console.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("#status:text('Ready')", timeout=120_000)
        page.set_input_files("#file", pages / name / "photo.jpg")
        page.wait_for_selector("#status:text-is('Answered.')", timeout=60_000)
        if name == "classifier":
            best = load(BUNDLES[0], precision=page.input_value("#precision"))(pages / name / "photo.jpg").top[0]
            assert page.inner_text("#labels li >> nth=0").startswith(f"{best.label}: {100 * best.score:.1f} %")
        else:
            assert page.is_visible("#output")
        assert "at most 0 of 255" in page.inner_text("#difference")  # Chromium decodes JPEG as Pillow does
        page.select_option("#precision", "fp32")
        page.wait_for_selector("#time:text('fp32')", timeout=60_000)
        page.click("#camera")
        page.wait_for_selector("#shoot:visible", timeout=60_000)
        page.click("#shoot")
        page.wait_for_selector("#shoot", state="hidden", timeout=60_000)
        page.wait_for_selector("#status:text-matches('Answered|Refused')", timeout=60_000)
        page.click("#check")
        page.wait_for_selector("#checked:text('agree')", timeout=120_000)
        passed, _, total = page.inner_text("#checked").split()[:3]
        assert passed == total and page.evaluate("() => document.documentElement.scrollWidth") <= width
        found = axe.Axe().run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")] == []
        assert console == [] and [each for each in asked if not each.startswith((address, "blob:", "data:"))] == []
        context.close()


SLOW_CAMERA = """
const canvas = document.createElement("canvas");
canvas.width = canvas.height = 64;
navigator.mediaDevices.getUserMedia = async () => {
  const pen = canvas.getContext("2d"), stream = canvas.captureStream(0);
  window.firstFrame = () => { pen.fillRect(0, 0, 64, 64); stream.getVideoTracks()[0].requestFrame(); };
  return stream;
};
"""


def test_a_picture_can_be_taken_once_the_camera_has_shown_one(pages: Path, browser: Any) -> None:
    with engines.served(pages / "classifier") as address:
        page = browser.new_page()
        page.add_init_script(SLOW_CAMERA)
        page.goto(address)
        page.wait_for_selector("#status:text('Ready')", timeout=120_000)
        page.click("#camera")
        page.wait_for_function("() => window.firstFrame && !document.getElementById('video').hidden")
        assert page.is_hidden("#shoot") and page.is_disabled("#camera")
        page.evaluate("() => window.firstFrame()")
        page.wait_for_selector("#shoot:visible", timeout=60_000)
        page.click("#shoot")
        page.wait_for_selector("#status:text-is('Answered.')", timeout=60_000)
        assert page.is_hidden("#shoot") and page.is_enabled("#camera")
        page.evaluate("() => { navigator.mediaDevices.getUserMedia = async () => { throw new Error('no camera here'); }; }")
        page.click("#camera")
        page.wait_for_selector("#status:text('no camera here')", timeout=60_000)
        assert page.is_hidden("#shoot") and page.is_hidden("#video") and page.is_enabled("#camera")
        page.close()


class ThreeBoxes(torch.nn.Module):
    """Boxes that hardly depend on the image: two of them are sure, one is not."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        level = x.mean(dim=(1, 2, 3), keepdim=True)[..., 0]
        boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [50.0, 10.0, 90.0, 60.0], [40.0, 30.0, 50.0, 50.0]]) + level
        return {"boxes": boxes, "scores": torch.tensor([[3.0, -9.0], [-9.0, 1.0], [-2.0, -9.0]]) + level}


def test_boxes_are_drawn_over_the_picture_and_told_by_node(browser: Any, tmp_path: Path) -> None:
    task = ImageTask(
        task="detection",
        pixels=Pixels(height=64, width=96, resize="letterbox"),
        labels=("cat", "dog"),
        detection=DetectionHead(),
        axes={"batch": Range(low=1, high=4)},
    )
    bundle = export_bundle(ThreeBoxes().eval(), task, tmp_path / "bundle", options=ExportOptions(precisions=("fp32",)))
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (90, 60, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    wanted = load(bundle.folder)(tmp_path / "photo.png")
    try:
        deploy_web(bundle, tmp_path / "page")
        packages = engines.node_modules()
    except (EdgeportError, engines.MissingError) as missing:
        pytest.skip(f"missing here: {missing}")
    with engines.served(tmp_path / "page") as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#status:text('Ready')", timeout=120_000)
        page.set_input_files("#file", tmp_path / "photo.png")
        page.wait_for_selector("#status:text-is('Answered.')", timeout=60_000)
        shown = [f"{each.label}: {100 * each.score:.1f} %" for each in wanted if each.score >= 0.3]
        assert [each.strip() for each in page.locator("#labels li").all_inner_texts()] == shown and len(shown) == 2 < len(wanted)
        assert page.get_attribute("#picture", "aria-label").endswith("with cat 97 %; dog 81 %")
        assert page.eval_on_selector("#picture", YELLOW) > 1000  # two boxes and their words
        page.close()
    deploy_node(bundle, tmp_path / "node")
    (tmp_path / "node" / "node_modules").symlink_to(packages)
    done = subprocess.run(["node", "main.mjs", "predict", tmp_path / "photo.png"], cwd=tmp_path / "node", capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{each.label} {each.score:.4f} at {','.join(f'{side:.1f}' for side in each.box)}" for each in wanted]


def test_what_the_page_does_not_take_is_one_sentence(pages: Path, browser: Any, tmp_path: Path) -> None:
    Image.new("RGB", (65, 20)).save(tmp_path / "wide.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no image")
    with engines.served(pages / "generator") as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#status:text('Ready')", timeout=120_000)
        for file, words in (("wide.png", "this model takes a width of 4 to 64, and this image has 65"), ("text.png", "That did not work")):
            page.set_input_files("#file", tmp_path / "good.png")  # twice the same
            page.wait_for_selector("#status:text-is('Answered.')", timeout=30_000)
            assert page.is_visible("#result")
            page.set_input_files("#file", tmp_path / file)
            page.wait_for_selector("#status.bad", timeout=30_000)
            assert words in page.inner_text("#status") and not page.is_visible("#result")  # which was another image's
        page.click("#camera")
        page.wait_for_selector("#shoot:visible", timeout=60_000)
        page.click("#camera")
        assert not page.is_visible("#shoot") and not page.is_visible("#video")
        page.route("**/golden.json", lambda route: route.fulfill(status=404))
        page.click("#check")
        page.wait_for_selector("#checked.bad", timeout=30_000)
        assert "golden.json is missing beside the page (404)" in page.inner_text("#checked") and page.is_enabled("#check")
        page.close()


def test_node_reads_images_as_the_runtime_does_and_says_what_it_cannot_read(tmp_path: Path) -> None:
    try:
        packages = engines.node_modules()
    except engines.MissingError as missing:
        pytest.skip(f"missing here: {missing}")
    folder = deploy_node(Bundle(BUNDLES[0]), tmp_path / "d", precision="fp32")
    (folder / "node_modules").symlink_to(packages)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    image, turned = Image.fromarray(pixels), Image.Exif()
    turned[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "turned.jpg", exif=turned)
    image.save(tmp_path / "profile.png", icc_profile=profile)
    image.convert("L").save(tmp_path / "gray.png")
    Image.merge("RGBA", [*image.split(), image.convert("L")]).save(tmp_path / "alpha.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_text("")

    def node(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["node", folder / "main.mjs", *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)

    with load(BUNDLES[0], precision="fp32") as model:
        for name in ("plain.png", "turned.jpg", "profile.png", "gray.png", "alpha.png"):
            expected = "".join(f"{each.label} {each.score:.4f}\n" for each in model(tmp_path / name).top)
            assert node("predict", name).stdout == expected, name
    for arguments, words in (
        (("predict", "cmyk.jpg"), "cmyk.jpg: the image cannot be read (it is CMYK; convert it to RGB)"),
        (("predict", "text.png"), "text.png: the image cannot be read (Input buffer contains unsupported image format)"),
        (("predict", "empty.png"), "empty.png: the image cannot be read"),
        (("predict", "nowhere.png"), "nowhere.png: the image cannot be read (there is no such file)"),
        (("predict", "d"), "d: the image cannot be read (it is a folder)"),
        (("predict", "plain.png", "gray.png"), "one image at a time, got plain.png gray.png as well"),
        (("predict", "plain.png", "--precision", "int8"), "this folder holds no int8: give one of fp32 (--precision)"),
        ((), "expected `check`, or `predict IMAGE`"),
    ):
        done = node(*arguments)
        assert done.returncode == 2 and words in done.stderr and done.stdout == "", done
    assert node("--help").stdout.startswith("node main.mjs check")


def require_servers() -> None:
    if not (SERVERS.parents[1] / "installed").exists():
        pytest.skip("missing here: tritonclient and mlserver (make .venv-deploy/installed)")


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.name)
def test_mlserver_answers_many_clients_in_batches(folder: Path, tmp_path: Path) -> None:
    require_servers()
    deploy_mlserver(Bundle(folder), tmp_path / "d", precision="fp32")
    settings = json.loads((tmp_path / "d" / "settings.json").read_text())
    ports = {}
    for name in ("http_port", "grpc_port", "metrics_port"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports[name] = free.getsockname()[1]
    (tmp_path / "d" / "settings.json").write_text(json.dumps({**settings, **ports}))
    command = [SERVERS, ROOT / "tests" / "bench" / "serve.py", tmp_path / "d", "--clients", "16", "--seconds", "3"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")}, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["answered"] == found["sent"] > 16 and found["wrong"] == 0 and all(found["golden"]) and len(found["golden"]) >= 2
    assert found["largest_batch"] > 4 and found["bad_refused"] and found["good_kept"]


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.name)
def test_tritons_own_schema_reads_the_configuration(folder: Path, tmp_path: Path) -> None:
    require_servers()
    bundle = Bundle(folder)
    place = deploy_triton(bundle, tmp_path / "r", name="m")

    def read(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([SERVERS, "-c", READ, path], capture_output=True, text=True, check=False)

    found = json.loads(read(place / "config.pbtxt").stdout)
    assert (found["name"], found["max_batch_size"], found["backend"]) == ("m", bundle.manifest.contract.axes["batch"].high, "onnxruntime")
    assert found["input"] == [{"name": "pixels", "data_type": "TYPE_UINT8", "dims": ["-1", "-1", "3"]}]
    text = (place / "config.pbtxt").read_text()
    for wrong, accepted in (("max_batch_size: -3", True), ("max_batch_sise: 3", False)):  # what our own check is for, and what it is not
        (tmp_path / "wrong").write_text(text.replace(f"max_batch_size: {found['max_batch_size']}", wrong))
        assert (read(tmp_path / "wrong").returncode == 0) is accepted
