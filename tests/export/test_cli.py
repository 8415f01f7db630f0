import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeport_export.cli import _in_float, main
from edgeport_runtime import Bundle, BundleError, Segmentation, load

pytestmark = pytest.mark.usefixtures("even_race")


@pytest.fixture
def bundle(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    command = ["export", "cnn", "--checkpoint", str(checkpoint), "--calibration", "digits", "--batch", "4", "--out", str(tmp_path / "cnn")]
    assert main(command) == 0
    text = capsys.readouterr().out
    for said in ("PyTorch: ", "fp32", "int8", "labels changed", "fp32 agrees with PyTorch at 1", "auto: int8"):
        assert said in text
    return tmp_path / "cnn"


def test_train_export_verify_predict(bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle), "--checkpoint", str(checkpoint)]) == 0
    assert "golden outputs agree" in capsys.readouterr().out
    assert main(["verify", str(bundle), "--checkpoint", str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    assert load(bundle, precision="fp32")(np.zeros((32, 32, 3), np.uint8)).label in "0123456789"  # type: ignore[union-attr]
    assert Bundle(bundle).evidence()["speed"]["batch"] == Bundle(bundle).manifest.variants[1].plan["batch"] == 4


def test_verify_of_another_checkpoint_exits_1(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.safetensors"
    assert main(["train", "cnn", "--epochs", "1", "--seed", "7", "--out", str(other)]) == 0
    assert "held-out images" in capsys.readouterr().out
    assert main(["verify", str(bundle), "--checkpoint", str(other)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_bench(bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(bundle), "--batch", "2", "--rounds", "1", "--size", "8x8", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"edgeport fp32", "edgeport int8"}


def test_train_on_a_folder_of_your_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    for label, level in (("night", 40), ("day", 200)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(40):
            Image.fromarray(np.clip(generator.normal(level, 25, (24, 30, 3)), 0, 255).astype(np.uint8)).save(tmp_path / "data" / label / f"{index}.png")
    out = tmp_path / "mine.safetensors"
    assert main(["train", "cnn", "--data", f"folder:{tmp_path / 'data'}", "--epochs", "5", "--size", "16", "--out", str(out)]) == 0
    assert "100.00% accuracy" in capsys.readouterr().out
    assert main(["export", "cnn", "--checkpoint", str(out), "--out", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quality"]["values"]["fp32"] == 1.0
    assert load(tmp_path / "b").contract.labels == ("day", "night")


def truncated(path: Path, folder: Path) -> Path:
    cut = folder / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:5000])
    return cut


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "cnn", "--checkpoint", "gone.safetensors", "--out", "{new}"], "gone.safetensors: expected a checkpoint, but there is no such file"),
        (["export", "cnn", "--checkpoint", "{cut}", "--out", "{new}"], "damaged or truncated"),
        (["export", "attention", "--checkpoint", "{checkpoint}", "--out", "{new}"], "unexpected: features.0.conv.bias"),
        (["export", "vgg", "--checkpoint", "{checkpoint}", "--out", "{new}"], "expected one of cnn, cnn-separable, resnet18"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--out", "{folder}"], "exists already; give another folder with --out"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--calibration", "folder:{folder}", "--out", "{new}"], "there are none in it"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--calibration", "folder:{bad}", "--out", "{new}"], "a.png: expected an image"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--calibration", "mnist", "--out", "{new}"], "got 'mnist'"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--precision", "int4", "--out", "{new}"], "precisions must include fp32"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--target", "riscv", "--out", "{new}"], "expected a target among x86-vnni, x86, arm64, got 'riscv'"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--plan", "gone.json", "--out", "{new}"], "gone.json: the int8 plan cannot be read"),
        (["export", "cnn", "--checkpoint", "{checkpoint}", "--metric", "nowhere", "--out", "{new}"], "expected a metric as my.module:function, got 'nowhere'"),
        (["export", "cnn"], "Missing option"),
        (["verify", "{folder}", "--checkpoint", "{checkpoint}"], "there is no manifest.json"),
        (["train", "cnn", "--out", "{new}.pt"], "checkpoints are written as .safetensors"),
        (["train", "cnn", "--out", "{checkpoint}"], "exists already; give another file with --out"),
        (["train", "cnn", "--weights", "none", "--out", "{new}.safetensors"], "cnn takes no --weights"),
        (["train", "cnn", "--data", "photos", "--out", "{new}.safetensors"], "learns from labelled images"),
        (["train", "cnn", "--epochs", "-1", "--out", "{new}.safetensors"], "at least 1 epoch"),
        (["train", "cnn", "--size", "2", "--out", "{new}.safetensors"], "the height of 'pixels' is 2 px, which is not within its own range 4..1024"),
        (["bench", "{folder}"], "there is no manifest.json"),
        (["bench", "{folder}", "--size", "big"], "expected a size as HEIGHTxWIDTH"),
        (["bench", "{folder}", "--against", "caffe"], "expected --against torch"),
        (["nonsense"], "No such command"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    arguments: list[str], said: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("folder", "bad"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad" / "a.png").write_text("no image")
    names = {"checkpoint": checkpoint, "cut": truncated(checkpoint, tmp_path), "new": tmp_path / "new", "folder": tmp_path / "folder", "bad": tmp_path / "bad"}
    before = sorted(path for path in tmp_path.rglob("*"))
    assert main([argument.format(**names) for argument in arguments]) == 2
    err = capsys.readouterr().err
    sentence = err.strip().splitlines()[-1]
    assert said in sentence and sentence.startswith("edgeport: ")
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_ctrl_c_exits_130(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from edgeport_export import pipeline

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "write_golden", interrupted)
    assert main(["export", "cnn", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "new")]) == 130
    assert "interrupted" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("edgeport 0.")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("train", "export", "verify", "bench", "demo"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_of_an_export_leaves_nothing(number: int, checkpoint: Path, tmp_path: Path) -> None:
    """In a process of its own, while it times candidates in processes of their own."""
    awake = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a test run in the background hands on a SIGINT that is ignored
    command = [sys.executable, "-c", f"{awake}; import sys; from edgeport_export.cli import main; sys.exit(main())"]
    arguments = ["export", "cnn", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "bundle")]
    process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    before = next((line for line in process.stderr if "timing products" in line), "it never came to that")
    time.sleep(0.5)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert "timing products" in before and process.returncode == 130 and "interrupted; nothing was left half-written" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


FACTORY = """
import torch
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d((3, 2)), nn.Flatten(), nn.Linear(48, 3))


def own():
    from edgeport_export.contracts import ImageTask, image_contract
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
    said = ["--size", "20x24", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--labels", "labels.txt", "--dynamic", "batch=1..4,height=8..40,width=8..40:2"]
    assert main(["export", f"{package}:network", "--checkpoint", "w.pt", *said, "--out", "b"]) == 0
    assert "auto: fp32 (the bundle was made without int8)" in capsys.readouterr().out
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
    assert "1 labels for an output of 3 classes" in capsys.readouterr().err


def test_grey_segmentation_with_two_outputs(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["--task", "segmentation", "--size", "12x16", "--grey", "--dynamic", "batch=1..4,height=4..32,width=4..32"]
    assert main(["export", f"{package}:Two", *said, "--out", "b"]) == 0
    model = load("b")
    assert [each.name for each in model.contract.outputs] == ["map", "mean"]
    answer = model(np.zeros((12, 16, 3), np.uint8))
    assert isinstance(answer, Segmentation) and answer.classes.shape == (12, 16)
    assert {name: value.shape for name, value in model.raw(np.zeros((2, 8, 10, 1), np.uint8)).items()} == {"map": (2, 4, 8, 10), "mean": (2, 4)}


def test_diff(bundle: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    assert main(["export", "cnn", "--checkpoint", str(checkpoint), "--dynamic", "batch=1..4", "--out", str(other)]) == 0
    capsys.readouterr()
    assert main(["diff", str(bundle), str(bundle)]) == 0
    assert "do not differ" in capsys.readouterr().out
    assert main(["diff", str(bundle), str(other), "--json"]) == 1
    found = {each["what"]: (each["first"], each["second"]) for each in json.loads(capsys.readouterr().out)}
    assert found["contract.axes.batch.high"] == ("64", "4") and found["contract.axes.height.low"] == ("4", "")
    assert "fp32: sha256" in found and "provenance.torch" not in found
    with pytest.raises(BundleError):
        Bundle(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{package}:gone", "--size", "8x8"], "cannot be imported"),
        (["nowhere_at_all:network", "--size", "8x8"], "cannot be imported"),
        (["{package}:number", "--size", "8x8"], "expected an nn.Module (or a module and its contract), got int"),
        (["{package}:failing", "--size", "8x8"], "calling it without arguments failed (RuntimeError: no weights here)"),
        (["{package}:network"], "needs a contract: --task and --size, --contract FILE"),
        (["{package}:network", "--task", "classification"], "name the size in pixels"),
        (["{package}:network", "--size", "8x8", "--task", "poetry"], "task must be one of"),
        (["{package}:network", "--size", "8x8", "--task", "segmentation"], "segmentation needs a first output with 4 axes"),
        (["{package}:network", "--size", "8x8", "--grey"], "the network fails on an input of shape (2, 1, 8, 8)"),
        (["{package}:network", "--size", "8x8", "--mean", "a,b,c"], "--mean: expected a number, got 'a'"),
        (["{package}:network", "--size", "8x8", "--dynamic", "depth=1..2"], "an image has the axes batch, height and width, got depth"),
        (["{package}:network", "--size", "8x8", "--dynamic", "batch=4"], "expected an axis as name=low..high"),
        (["{package}:network", "--size", "8x8", "--labels", "gone.txt"], "the labels cannot be read"),
        (["{package}:network", "--size", "8x8", "--dynamic", "batch=1..²"], "expected an axis as name=low..high"),
        (["{package}:network", "--size", "²x²"], "expected a size as HEIGHTxWIDTH"),
        (["{package}:network", "--size", "8x8", "--dynamic", "batch=1..4,batch=1..8"], "the axis batch is named twice"),
        (["{package}:network", "--size", "8x8", "--dynamic", "height=16..64"], "the height of 'pixels' is 8 px, which is not within its own range 16..64"),
        (["{package}:network", "--size", "8x8", "--mean", "nan,0,0"], "pixels.mean and pixels.std must be finite"),
        (["{package}:network", "--size", "8x8", "--resize", "letterbox:5"], "only crop takes a number of pixels"),
        (["{package}:network", "--size", "8x8", "--sqnr-floor", "nan"], "sqnr_floor_db must be a number of dB, got nan"),
        (["{package}:network", "--transforms", "ResNet50_Weights.IMAGENET1K_V2", "--grey"], "--transforms says everything about the pixels"),
        (["{package}:network", "--contract", "gone.json"], "the contract cannot be read"),
        (["{package}:network", "--transforms", "Nothing_Weights.X"], "expected a weights object of torchvision.models"),
        (["cnn", "--size", "8x8"], "brings its own contract"),
        (["cnn"], "needs its trained weights"),
    ],
)
def test_a_network_that_is_not_well_described(arguments: list[str], said: str, package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *[argument.format(package=package) for argument in arguments], "--out", "b"]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in err and err.startswith("edgeport: ") and not Path("b").exists()


def test_paths_may_hold_brackets(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "[bold]a [x]"
    assert main(["export", "cnn", "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    assert "[bold]a" in capsys.readouterr().out
    assert load(out).check()


def test_bench_against_another_network_is_refused(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.safetensors"
    assert main(["train", "cnn", "--epochs", "1", "--size", "16", "--out", str(other)]) == 0
    capsys.readouterr()
    assert main(["bench", str(bundle), "--against", "torch", "--checkpoint", str(other), "--rounds", "1"]) == 2
    assert "made for another contract" in capsys.readouterr().err


def test_a_training_that_diverges_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "cnn", "--epochs", "1", "--learning-rate", "1e9", "--out", str(tmp_path / "c.safetensors")]) == 2
    assert "the training diverged; lower the learning rate" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_stayed_float_is_listed_with_its_reason() -> None:
    few = {"a/Conv": "time: 1 against 2 ms", "b/Gemm": "error: 12 dB"}
    assert list(_in_float(few)) == ["float in int8: a/Conv: time: 1 against 2 ms", "float in int8: b/Gemm: error: 12 dB"]
    many = {f"{index}/Conv": "time" for index in range(20)}
    *named, last = _in_float(many)
    assert len(named) == 12 and named[-1] == "float in int8: 11/Conv: time" and last.startswith("float in int8: 8 more")
    assert not list(_in_float({}))
