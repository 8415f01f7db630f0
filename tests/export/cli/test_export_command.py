"""`edgeport export` for a network of the user's own, from the command line."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeport_export import ExportError, ExportOptions, OutputError
from edgeport_export.cli.app import main
from edgeport_export.cli.export_command import ExportJob, run_export
from edgeport_export.cli.network_arguments import NetworkArguments
from edgeport_export.progress import no_progress
from edgeport_runtime import Bundle, Contract, Input, Output, Range, Segmentation, load

pytestmark = pytest.mark.usefixtures("fixed_latencies")
FACTORY = """
import torch
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d((3, 2)), nn.Flatten(), nn.Linear(48, 3))


def own():
    from edgeport_export.network.contracts import ImageTask, image_contract
    from edgeport_runtime import Pixels

    made = network()
    return made, image_contract(made, ImageTask(task="classification", pixels=Pixels(height=12, width=10, mean=(0.1, 0.2, 0.3))))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x):
        y = self.body(x)
        return {"map": y, "mean": y.mean((2, 3))}


broken = nn.Module
number = 3


def failing():
    raise RuntimeError("no weights here")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_any_network_with_its_own_weights_and_images(package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(package).network()
    torch.save({"state_dict": {f"module.{key}": value * 2 for key, value in module.state_dict().items()}}, "w.pt")
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    described = [
        "--size",
        "20x24",
        "--mean",
        "0.5,0.5,0.5",
        "--std",
        "0.5,0.5,0.5",
        "--labels",
        "labels.txt",
        "--dynamic",
        "batch=1..4,height=8..40,width=8..40:2",
    ]
    assert main(["export", f"{package}:network", "--checkpoint", "w.pt", *described, "--out", "b"]) == 0
    assert "auto: fp32, because no calibration images were given, so there is no int8" in capsys.readouterr().out
    model = load("b")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 30, 3), dtype=np.uint8)
    module.load_state_dict({key: value * 2 for key, value in module.state_dict().items()})
    expected = module.double()(torch.from_numpy(pixels).double().permute(0, 3, 1, 2) / 127.5 - 1).detach().numpy()
    np.testing.assert_allclose(model.raw(pixels)["logits"], expected, rtol=1e-4, atol=1e-5)
    assert model(pixels[0]).label in ("cat", "dog", "bird")  # type: ignore[union-attr]
    assert str(model.contract.axes["width"]) == "8..40 in steps of 2"
    assert main(["verify", "b", "--model", f"{package}:network", "--checkpoint", "w.pt"]) == 0
    assert main(["verify", "b", "--model", f"{package}:network"]) == 1  # other weights
    assert main(["bench", "b", "--against", "torch", "--model", f"{package}:network", "--batch", "2", "--rounds", "1", "--json"]) == 0


def test_labels_join_the_contract_that_a_factory_brings(package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    assert main(["export", f"{package}:own", "--labels", "labels.txt", "--dynamic", "batch=1..4", "--out", "b"]) == 0
    contract = load("b").contract
    assert contract.labels == ("cat", "dog", "bird") and contract.inputs[0].pixels.mean == (0.1, 0.2, 0.3)  # type: ignore[union-attr]
    assert str(contract.axes["batch"]) == "1..4"
    (tmp_path / "labels.txt").write_text("cat\n")
    assert main(["export", f"{package}:own", "--labels", "labels.txt", "--out", "c"]) == 2
    assert "1 labels for an output of shape ('batch', 3)" in capsys.readouterr().err


def test_gray_segmentation_with_two_outputs(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    described = ["--task", "segmentation", "--size", "12x16", "--gray", "--dynamic", "batch=1..4,height=4..32,width=4..32"]
    assert main(["export", f"{package}:Two", *described, "--out", "b"]) == 0
    model = load("b")
    assert [each.name for each in model.contract.outputs] == ["map", "mean"]
    answer = model(np.zeros((12, 16, 3), np.uint8))
    assert isinstance(answer, Segmentation) and answer.classes.shape == (12, 16)
    assert {name: value.shape for name, value in model.raw(np.zeros((2, 8, 10, 1), np.uint8)).items()} == {"map": (2, 4, 8, 10), "mean": (2, 4)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{package}:gone", "--size", "8x8"], "cannot be imported"),
        (["nowhere_at_all:network", "--size", "8x8"], "cannot be imported"),
        (["{package}:number", "--size", "8x8"], "expected an nn.Module (or a module and its contract), got int"),
        (["{package}:failing", "--size", "8x8"], "calling it without arguments failed (RuntimeError: no weights here)"),
        (["{package}:network"], "needs a contract: --task and --size, --contract FILE"),
        (["{package}:network", "--task", "classification"], "name the size in pixels"),
        (["{package}:network", "--size", "8x8", "--task", "poetry"], "task must be one of"),
        (["{package}:network", "--size", "8x8", "--task", "segmentation"], "segmentation needs a first output with 4 axes"),
        (["{package}:network", "--size", "8x8", "--gray"], "the network fails on an input of shape (2, 1, 8, 8)"),
        (["{package}:network", "--size", "8x8", "--mean", "a,b,c"], "--mean: expected a number, got 'a'"),
        (["{package}:network", "--size", "8x8", "--dynamic", "depth=1..2"], "an image has the axes batch, height and width, got depth"),
        (["{package}:network", "--size", "8x8", "--dynamic", "batch=4"], "expected an axis as name=low..high"),
        (["{package}:network", "--size", "8x8", "--labels", "gone.txt"], "expected a file with one label a line, but it cannot be read"),
        (["{package}:network", "--size", "8x8", "--dynamic", "batch=1..²"], "expected an axis as name=low..high"),
        (["{package}:network", "--size", "²x²"], "expected a size as HEIGHTxWIDTH"),
        (["{package}:network", "--size", "8x8", "--dynamic", "batch=1..4,batch=1..8"], "the axis batch is named twice"),
        (["{package}:network", "--size", "8x8", "--dynamic", "height=16..64"], "the height of 'pixels' is 8 px, which is not within its own range 16..64"),
        (["{package}:network", "--size", "8x8", "--output-range", "-1,1"], "--output-range is for --task image-to-image"),
        (["{package}:network", "--size", "8x8", "--task", "image-to-image", "--output-range", "1,-1"], "expected two numbers, black and white, such as -1,1"),
        (["{package}:network", "--size", "8x8", "--mean", "nan,0,0"], "pixels.mean and pixels.std must be finite"),
        (["{package}:network", "--size", "8x8", "--resize", "letterbox:5"], "only crop takes a number of pixels"),
        (["{package}:network", "--size", "8x8", "--sqnr-floor", "nan"], "sqnr_floor_db must be a number of dB, got nan"),
        (["{package}:network", "--transforms", "ResNet50_Weights.IMAGENET1K_V2", "--gray"], "--transforms describes the pixels completely"),
        (["{package}:network", "--contract", "gone.json"], "the contract cannot be read"),
        (["{package}:network", "--transforms", "Nothing_Weights.X"], "expected a weights object of torchvision.models"),
        (["cnn", "--size", "8x8"], "brings its own contract"),
        (["cnn"], "needs its trained weights"),
    ],
)
def test_a_network_that_is_not_well_described(arguments: list[str], message: str, package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *[argument.format(package=package) for argument in arguments], "--out", "b"]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in err and err.startswith("edgeport: ") and not Path("b").exists()


@pytest.mark.parametrize(
    ("precision", "kept"),
    [(None, ["fp32"]), ("fp32", ["fp32"]), ("fp32,int8", ["fp32", "int8"]), ("fp32, int8", ["fp32", "int8"])],
)
def test_int8_that_is_named_is_kept_in_any_case(precision: str | None, kept: list[str], checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(sqnr_floor_db=500.0, max_drop=0.0, calibration_images=4)  # of four images int8 is not taken by itself
    run_export(ExportJob(name="cnn", checkpoint=checkpoint, out=tmp_path / "b", precision=precision, options=options), no_progress)
    manifest = Bundle(tmp_path / "b").manifest
    assert [each.precision for each in manifest.variants] == kept and manifest.auto.precision == "fp32"
    assert manifest.provenance["calibration"] == "digits" and manifest.provenance["model"] == "cnn"


def test_a_plan_is_replayed_by_the_name_of_its_bundle(checkpoint: Path, tmp_path: Path) -> None:
    run_export(ExportJob(name="cnn", checkpoint=checkpoint, out=tmp_path / "a", precision="fp32,int8"), no_progress)
    run_export(ExportJob(name="cnn", checkpoint=checkpoint, out=tmp_path / "b", plan=tmp_path / "a"), no_progress)
    assert (tmp_path / "a" / "model.int8.onnx").read_bytes() == (tmp_path / "b" / "model.int8.onnx").read_bytes()


def test_a_plan_is_read_before_the_network_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.json: the int8 plan cannot be read"):
        run_export(ExportJob(name="no_such_network", out=tmp_path / "b", plan=tmp_path / "none.json"), no_progress)


def test_a_librarys_network_is_exported_and_verified_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    call = ["export", "timm:mobilenetv4_conv_small", "--size", "32x32", "--labels", "labels.txt", "--random-weights", "--dynamic", "batch=1..2", "--out", "b"]
    assert main(call) == 0
    assert "weights: random, as --random-weights asked" in capsys.readouterr().out
    model = load("b")
    assert model.contract.labels == ("cat", "dog") and (model.contract.pixels.height, model.contract.pixels.resize_shorter_px) == (32, 37)
    assert main(["verify", "b", "--model", "timm:mobilenetv4_conv_small"]) == 0
    assert main([*call, "--mean", "0,0,0", "--force"]) == 2
    assert "only --size, --labels and --dynamic change it" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_done_and_does_nothing(package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = importlib.import_module(package).network().state_dict()
    torch.save({"model": state, "model_ema": {key: value * 2 for key, value in state.items()}}, "w.pt")
    for index in range(40):
        path = tmp_path / "images" / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(path)
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    call = ["export", f"{package}:network", "--checkpoint", "w.pt", "--size", "20x24", "--labels", "labels.txt", "--calibration", "images", "--out", "b"]
    assert main([*call, "--dry-run"]) == 0
    told = capsys.readouterr().out
    for words in (
        "weights: the averaged weights model_ema; and not model (--weights-key takes another)",
        "20x24 RGB, stretch, bilinear; (pixel / 255 - (0.0, 0.0, 0.0)) / (1.0, 1.0, 1.0)",
        "output:  logits: float32 (batch, 3)",
        "axes:    batch 1..64",
        "labels:  cat, dog, bird",
        "images of images; ",
        "others, with their truth, judge it",
        "b, which is free; nothing was written",
    ):
        assert words in told
    assert not (tmp_path / "b").exists()
    assert main([*call, "--weights-key", "model", "--precision", "fp32", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "weights: model\n" in told and "int8:    not asked for" in told


def test_an_exports_report_tells_where_differences_come_from_and_what_the_truth_was(checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(search_seconds=5)
    job = ExportJob(name="cnn", checkpoint=checkpoint, out=tmp_path / "b", options=options, precision="fp32", report=tmp_path / "page.html")
    run_export(job, no_progress)
    page = (tmp_path / "page.html").read_text()
    assert 'data-stage="resize"' in page and "on 16 images" in page and "<b>truth</b>" in page and "b1-verified" not in page
    with pytest.raises(OutputError, match=r"page\.html exists already"):
        run_export(replace(job, out=tmp_path / "c"), no_progress)
    assert not (tmp_path / "c").exists()
    run_export(replace(job, out=tmp_path / "b", force=True), no_progress)
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


def test_a_network_of_tensors_has_a_report_without_stages(package: str, tmp_path: Path) -> None:
    inputs, outputs = Input(name="x", dtype="float32", shape=("batch", 3, 12, 10)), Output(name="y", kind="tensor", dtype="float32", shape=("batch", 3))
    contract = Contract(task="tensors", inputs=(inputs,), outputs=(outputs,), axes={"batch": Range(low=1, high=4)})
    (tmp_path / "contract.json").write_text(json.dumps(contract.to_dict()))
    described = NetworkArguments(contract=tmp_path / "contract.json")
    run_export(ExportJob(name=f"{package}:network", described=described, out=tmp_path / "b", precision="fp32", report=tmp_path / "page.html"), no_progress)
    page = (tmp_path / "page.html").read_text()
    assert "b1-stages" not in page and "b1-decision" in page
