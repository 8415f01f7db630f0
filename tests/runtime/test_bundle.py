import json
from pathlib import Path

import pytest

from edgeport_runtime import AlteredError, Bundle, BundleError, FormatError, load
from edgeport_runtime.bundle import MANIFEST
from edgeport_runtime.manifest import FORMAT, sealed


def rewrite(bundle: Path, change) -> None:  # type: ignore[no-untyped-def]
    data = json.loads((bundle / MANIFEST).read_text())
    change(data)
    (bundle / MANIFEST).write_text(json.dumps(sealed(data)))


@pytest.mark.parametrize("folder", sorted((Path(__file__).parents[1] / "fixtures").glob("format*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_every_format_ever_written_stays_readable(folder: Path) -> None:
    bundle = Bundle(folder)
    assert bundle.manifest.format <= FORMAT
    assert load(folder, precision="fp32").check()


def test_the_manifest_is_read_into_values(classifier: Path) -> None:
    manifest = Bundle(classifier).manifest
    assert manifest.name == "tiny-classifier"
    assert [variant.precision for variant in manifest.variants] == ["fp32", "int8"]
    assert manifest.contract.labels == ("dark", "middle", "bright")


def test_a_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no such folder"):
        Bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"there is no manifest\.json"):
        Bundle(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format=FORMAT + 1), "upgrade edgeport-runtime"),
        (lambda data: data.pop("format"), "not a manifest of edgeport"),
        (lambda data: data.pop("golden"), "incomplete or malformed"),
        (lambda data: data["variants"][0].update(color="red"), "incomplete or malformed"),
        (lambda data: data["variants"][0].update(file="../model.onnx"), "points outside the bundle"),
        (lambda data: data["variants"][0].update(file="/etc/passwd"), "points outside the bundle"),
        (lambda data: data.update(format=True), "not a manifest of edgeport"),
        (lambda data: data.update(auto={}), "incomplete or malformed"),
        (lambda data: data["auto"].update(precision="int4"), "incomplete or malformed"),
        (lambda data: data["auto"].update(in_batches="int4", from_batch="8"), "incomplete or malformed"),
        (lambda data: data["auto"].update(in_batches="int8", from_batch="1"), "incomplete or malformed"),
        (lambda data: data["auto"].update(in_batches="int8", from_batch="many"), "incomplete or malformed"),
        (lambda data: data["auto"].update(in_batches="int8"), "incomplete or malformed"),
        (lambda data: data["auto"].update(data_parallel_from="1"), "incomplete or malformed"),
        (lambda data: data["auto"].update(data_parallel_from="sometimes"), "incomplete or malformed"),
        (lambda data: data["golden"][0].update(host={}), "incomplete or malformed"),
        (lambda data: data["golden"][0].update(inputs=[]), "incomplete or malformed"),
        (lambda data: data["variants"].append(data["variants"][0]), "incomplete or malformed"),
        (lambda data: data["variants"][0].update(file=5), "incomplete or malformed"),
        (lambda data: data["contract"].update(task="magic"), "incomplete or malformed"),
        (lambda data: data["golden"][0]["tolerance"]["fp32"][0].update(max_abs=None), "incomplete or malformed"),
    ],
)
def test_a_manifest_that_cannot_be_read(altered: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    rewrite(altered, change)
    with pytest.raises(FormatError, match=message):
        load(altered, precision="fp32")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00"])
def test_a_manifest_that_is_no_json(altered: Path, text: str) -> None:
    (altered / MANIFEST).write_text(text)
    with pytest.raises(FormatError):
        Bundle(altered)


def test_an_altered_manifest(altered: Path) -> None:
    text = (altered / MANIFEST).read_text()
    (altered / MANIFEST).write_text(text.replace('"max_abs": ', '"max_abs": 9'))
    with pytest.raises(AlteredError, match=r"manifest\.json: the content is not what was written"):
        Bundle(altered)


def test_a_model_for_a_newer_onnxruntime(altered: Path) -> None:
    rewrite(altered, lambda data: data["variants"][0].update(onnxruntime="99.1"))
    with pytest.raises(BundleError, match=r"needs onnxruntime 99\.1 or newer, but 1\."):
        load(altered, precision="fp32")


def flip(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("precision", "file"), [("fp32", "model.onnx"), ("int8", "model.int8.onnx")])
def test_an_altered_byte_in_a_variant(altered: Path, precision: str, file: str) -> None:
    flip(altered / file, 5000)
    with pytest.raises(AlteredError, match=f"{file}: the content differs"):
        load(altered, precision=precision)


@pytest.mark.parametrize("file", ["test_data_set_0/output_0.pb", "test_data_set_1/input_0.pb", "test_data_set_0/int8_output_0.pb", "model.int8.onnx"])
def test_check_looks_at_every_file_whatever_precision_runs(altered: Path, file: str) -> None:
    model = load(altered, precision="fp32")
    flip(altered / file)
    with pytest.raises(AlteredError, match=f"{file}: the content differs"):
        model.check()


def test_a_missing_file(altered: Path) -> None:
    (altered / "model.onnx").unlink()
    with pytest.raises(AlteredError, match="lists this file, but it cannot be read"):
        load(altered, precision="fp32")


def test_a_contract_that_is_not_the_files(altered: Path) -> None:
    rewrite(altered, lambda data: data["contract"].update(labels=["cat", "dog", "bird"]))
    with pytest.raises(BundleError, match=r"the contract inside model\.onnx is not the manifest's"):
        load(altered, precision="fp32")


def test_an_unknown_variant(classifier: Path) -> None:
    with pytest.raises(BundleError, match="no fp16 variant in this bundle; it has fp32, int8"):
        load(classifier, precision="fp16")


def test_evidence(altered: Path) -> None:
    assert Bundle(altered).evidence()["parity"]["fp32"]["passed"] is True
    (altered / "evidence.json").write_text("{")
    with pytest.raises(FormatError, match="evidence cannot be read"):
        Bundle(altered).evidence()
    (altered / "evidence.json").unlink()
    assert Bundle(altered).evidence() == {}
