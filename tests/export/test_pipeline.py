import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from edgeport_export import ExportError, ExportOptions, OutputError, ParityError, export_bundle, pipeline
from edgeport_export.pipeline import processor
from edgeport_export.race import Heat
from edgeport_runtime import Bundle, Contract, load
from edgeport_runtime.evaluate import Example

pytestmark = pytest.mark.usefixtures("even_race")


def make(tiny: ModuleType, contract: Contract, out: Path, **changes: object) -> Path:
    examples = tiny.brightness_examples(24, seed=2)
    given = {"name": "tiny", "calibration": examples, "held_out": examples, **changes}
    return export_bundle(tiny.trained_classifier(), contract, out, **given)  # type: ignore[arg-type]


def promised(bundle: Path) -> dict[str, bytes]:
    return {str(p.relative_to(bundle)): p.read_bytes() for p in sorted(bundle.rglob("*")) if p.is_file() and p.name != "evidence.json"}


def test_a_bundle_is_whole_and_equals_pytorch(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    out = make(tiny, class_contract, tmp_path / "a" / "bundle")
    pixels = np.stack([example.source for example in tiny.brightness_examples(8, seed=9)])
    network = tiny.trained_classifier().double()
    expected = network(torch.from_numpy(pixels).double().permute(0, 3, 1, 2) / 127.5 - 1).detach().numpy()
    for precision, tolerance in (("fp32", 1e-6), ("int8", 0.05)):
        model = load(out, precision=precision)
        assert model.check()
        np.testing.assert_allclose(model.raw(pixels)["logits"], expected, atol=tolerance * np.ptp(expected))
    manifest, evidence = Bundle(out).manifest, Bundle(out).evidence()
    assert manifest.auto["precision"] == "int8" and "within the quality budget" in manifest.auto["reason"]
    assert {"torch", "onnxruntime", "edgeport", "numpy"} <= manifest.provenance.keys()
    assert evidence["quality"]["changed"]["fp32"] == 0 and evidence["quality"]["values"]["torch"] > 0.9
    assert evidence["speed"]["ms_per_call"] == {"fp32": 2.0, "int8": 1.0} and evidence["machine"]["threads"] >= 1
    assert manifest.variants[0].onnxruntime == "1.18" and manifest.variants[1].plan["integer_share"] == 1.0


def test_same_network_same_bytes_in_another_folder(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    first, second = make(tiny, class_contract, tmp_path / "one"), make(tiny, class_contract, tmp_path / "elsewhere" / "two")
    assert promised(first) == promised(second)
    for data in promised(first).values():
        assert str(tmp_path).encode() not in data


def test_fp32_alone_needs_no_images(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    out = make(tiny, class_contract, tmp_path / "b", calibration=(), held_out=(), options=ExportOptions(precisions=("fp32",)))
    model = load(out)
    assert model.precision == "fp32" and model.reason == "the bundle was made without int8" and model.check()
    assert Bundle(out).evidence()["quality"] is None


@pytest.mark.parametrize(
    ("options", "heats", "said"),
    [
        (ExportOptions(), {"fp32": 1.0, "int8": 1.0}, "int8 was not faster than fp32"),
        (ExportOptions(max_drop=0.0), {"fp32": 2.0, "int8": 1.0}, "int8 loses more than the 0 points allowed"),
    ],
)
def test_auto_takes_int8_only_where_it_pays(
    tiny: ModuleType, class_contract: Contract, tmp_path: Path, options: ExportOptions, heats: dict[str, float], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "race", lambda *_, **__: {name: Heat(median_ms=ms, rounds_ms=(ms,)) for name, ms in heats.items()})
    if options.max_drop == 0.0:
        monkeypatch.setattr(pipeline.Judgement, "drop", lambda self, precision: 0.1)
    assert said in load(make(tiny, class_contract, tmp_path / "b", options=options)).reason


def test_a_bundle_that_disagrees_is_not_written(tiny: ModuleType, class_contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = pipeline.finish

    def spoilt(model, contract):  # type: ignore[no-untyped-def]
        for each in model.graph.initializer:
            if each.name == "network.conv1.weight":
                each.raw_data = (np.frombuffer(each.raw_data, np.float32) * np.float32(1.001)).tobytes()
        return finish(model, contract)

    monkeypatch.setattr(pipeline, "finish", spoilt)
    with pytest.raises(ParityError, match="the fp32 graph disagrees with PyTorch, so no bundle was written"):
        make(tiny, class_contract, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_label_refuses_the_bundle(tiny: ModuleType, class_contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = pipeline.judge
    monkeypatch.setattr(pipeline, "judge", lambda *arguments: replace(judge(*arguments), decided={"fp32": 2, "int8": 0}))
    with pytest.raises(ParityError, match="fp32 gives another label than PyTorch on 2 of 24 held-out images"):
        make(tiny, class_contract, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["tracing", "parity with PyTorch", "calibrating int8", "judging on held-out images", "golden cases", "timing", "writing"])
def test_ctrl_c_at_any_stage_leaves_nothing(tiny: ModuleType, class_contract: Contract, tmp_path: Path, stage: str) -> None:
    def watch(name: str, done: int, total: int, note: str = "") -> None:
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tiny, class_contract, tmp_path / "b", watch=watch)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_kept_unless_forced(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> None:
    stored = Path(__file__).parents[1] / "fixtures" / "format1" / "classifier"
    out = Path(shutil.copytree(stored, tmp_path / "b"))
    before = promised(out)
    with pytest.raises(OutputError, match="exists already"):
        make(tiny, class_contract, out)
    assert promised(out) == before
    make(tiny, class_contract, out, force=True)
    assert json.loads((out / "manifest.json").read_text())["name"] == "tiny"


def test_options_are_checked() -> None:
    with pytest.raises(ExportError, match="must include fp32"):
        ExportOptions(precisions=("int8",))
    with pytest.raises(ExportError, match="among fp32, int8"):
        ExportOptions(precisions=("fp32", "int4"))
    with pytest.raises(ExportError, match="max_drop must be at least 0"):
        ExportOptions(max_drop=-1)


def test_a_generator(tiny: ModuleType, image_contract: Contract, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pairs = [Example(source=e.source, truth=e.source) for e in tiny.brightness_examples(8, seed=2)]
    out = export_bundle(tiny.TinyGenerator(), image_contract, tmp_path / "g", name="g", calibration=pairs, held_out=pairs)
    assert load(out, precision="fp32").check() and load(out, precision="int8").check()
    assert Bundle(out).evidence()["quality"]["metric"] == "psnr_db"


def test_the_processors_name(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast CPU 9000\n")
    assert processor(tmp_path / "cpuinfo") == "Fast CPU 9000"
    assert processor(tmp_path / "nothing")
