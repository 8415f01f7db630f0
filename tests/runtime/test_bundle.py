import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from edgeport_runtime import AlteredError, Bundle, BundleError, FormatError, InputError, load
from edgeport_runtime.bundle import EVIDENCE, MANIFEST
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
        (lambda data: data.update(format=FORMAT + 1), r"install edgeport-runtime 0\.1\.0 or newer"),
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
        (lambda data: data["golden"][0]["tolerance"]["fp32"][0].update(max_abs="0.1"), "golden.tolerance.max_abs has a value of another kind"),
        (lambda data: data["golden"][0]["host"]["int8"][0].update(file="a/../../b"), "points outside the bundle"),
        (lambda data: data["golden"][0]["outputs"][0].update(file="C:\\x"), "points outside the bundle"),
        (lambda data: data["golden"][0]["outputs"][0].update(file="..\\x"), "points outside the bundle"),
        (lambda data: data["golden"][0]["inputs"][0].update(file="a\0b"), "points outside the bundle"),
        (lambda data: data["golden"][0]["inputs"][0].update(file=""), "points outside the bundle"),
        (lambda data: data["variants"][0].update(bytes=2**31), "model.onnx has 2147483648 bytes"),
        (lambda data: data["variants"][0].update(bytes=0), "model.onnx has 0 bytes"),
        (lambda data: data["golden"][0].update(sizes={"batch": 1, "height": 65, "width": 8}, inputs=[]), "which the contract's axes do not allow"),
        (lambda data: data["golden"][0].update(sizes={"batch": 1}, inputs=[]), "which the contract's axes do not allow"),
        (lambda data: data["golden"][0].update(every=0), "and every 0, which the contract's axes do not allow"),
        (lambda data: data["contract"].update(color="red"), "fields that this version of edgeport does not know: color"),
        (lambda data: data["golden"][0].update(color="red"), "a golden case has fields that format 2 does not know: color"),
        (lambda data: data["contract"]["inputs"][0]["pixels"].update(height=20000, width=20000), "pixels of 20000x20000 are more than"),
        (lambda data: data.update(format=99, provenance={"edgeport": "1.2.3"}), r"format 99, .* reads up to 2; install edgeport-runtime 1\.2\.3 or newer"),
        (lambda data: data.update(format=99, provenance={"edgeport": "1; rm -rf"}), "install a newer edgeport-runtime$"),
        (lambda data: data.update(format=99, provenance=5), "install a newer edgeport-runtime$"),
    ],
)
def test_a_manifest_that_cannot_be_read(altered: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    rewrite(altered, change)
    with pytest.raises(FormatError, match=message):
        load(altered, precision="fp32")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[1, 2]", "no format version"),
        ("\x00", "cannot be read"),
        ('{"format": 2, "x": NaN}', "NaN is no number of JSON"),
        ('{"format": 2, "x": ' + "9" * 5000 + "}", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"format": 2, "x": ' + "[" * 900 + "]" * 900 + "}", "AlteredError|content is not what was written|malformed"),
        (" " * (16 * 2**20 + 1), "16,777,217 bytes, and at most 16,777,216 are read"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_manifest_that_is_no_json(altered: Path, text: str, message: str) -> None:
    (altered / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=message):
        Bundle(altered)


def test_format_2_knows_no_other_fields(altered: Path) -> None:
    """Format 1 was written by versions that added some; 2 is frozen."""
    rewrite(altered, lambda data: data.update(surplus=1))
    assert load(altered, precision="fp32").check()
    manifest = json.loads(replace(Bundle(altered).manifest, format=2).to_json())
    for change, message in (({}, None), ({"surplus": 1}, "the manifest has fields that format 2 does not know: surplus")):
        (altered / MANIFEST).write_text(json.dumps(sealed({**manifest, **change})))
        if message is None:
            assert Bundle(altered).manifest.format == 2
        else:
            with pytest.raises(FormatError, match=message):
                Bundle(altered)


@pytest.mark.skipif(os.name == "nt", reason="links and pipes are Unix's")
@pytest.mark.parametrize("name", ["model.onnx", "test_data_set_0", "test_data_set_0/input_0.pb"])
def test_a_file_of_a_bundle_is_no_link(altered: Path, tmp_path: Path, name: str) -> None:
    (altered / name).rename(tmp_path / "elsewhere")
    (altered / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AlteredError, match=rf"{name.split('/')[0]}.*: a file of a bundle is no link; copy the bundle with what its links point to"):
        Bundle(altered).read_all()


@pytest.mark.skipif(os.name == "nt", reason="links and pipes are Unix's")
def test_the_folder_itself_may_be_a_link(altered: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(altered)
    assert load(tmp_path / "current", precision="fp32").check()


@pytest.mark.skipif(os.name == "nt", reason="links and pipes are Unix's")
@pytest.mark.parametrize("name", [MANIFEST, "model.onnx", "test_data_set_0/input_0.pb", EVIDENCE])
def test_a_pipe_in_a_bundle_is_not_waited_for(altered: Path, name: str) -> None:
    (altered / name).unlink()
    os.mkfifo(altered / name)
    with pytest.raises(BundleError, match="it is a pipe, not a file"):
        Bundle(altered).read_all() if name != EVIDENCE else Bundle(altered).evidence()
    if name == EVIDENCE:
        assert load(altered, precision="fp32").check()  # nothing depends on it


@pytest.mark.parametrize("more", [1, -1, 10**9])
def test_a_variant_has_the_size_that_the_manifest_declares(altered: Path, more: int) -> None:
    """A file that was made longer is not even read."""
    with (altered / "model.onnx").open("r+b") as file:
        file.truncate(Bundle(altered).variant("fp32").bytes + more)
    with pytest.raises(AlteredError, match=r"model\.onnx: (the manifest lists this file, but it cannot be read \(it has [\d,]+ bytes|the content differs)"):
        load(altered, precision="fp32")


def test_a_golden_file_is_not_larger_than_it_may_be(altered: Path) -> None:
    with (altered / "test_data_set_0" / "input_0.pb").open("r+b") as file:
        file.truncate(2**29 + 1)  # takes no space
    with pytest.raises(AlteredError, match="it has 536,870,913 bytes, and at most 536,870,912 are read"):
        Bundle(altered).read_all()


def test_the_manifest_is_the_one_that_was_meant(classifier: Path, altered: Path) -> None:
    sha256 = hashlib.sha256((classifier / MANIFEST).read_bytes()).hexdigest()
    assert Bundle(classifier, sha256).sha256 == Bundle(classifier, f" {sha256.upper()}\n").sha256 == sha256
    rewrite(altered, lambda data: data.update(name="another"))
    for opened in (lambda: Bundle(altered, sha256), lambda: load(altered, manifest_sha256=sha256)):
        with pytest.raises(AlteredError, match=rf"its sha256 is [0-9a-f]{{64}}, not {sha256}: this is not the bundle that was meant"):
            opened()
    with pytest.raises(InputError, match=r"a lone \.onnx file has none"):
        load(classifier / "model.onnx", manifest_sha256=sha256)


def test_a_bundle_that_was_replaced_says_so(altered: Path) -> None:
    model = load(altered, precision="fp32")
    assert model.bundle is not None and not model.bundle.was_replaced()
    rewrite(altered, lambda data: data.update(name="another"))
    (altered / "model.onnx").write_bytes(b"another")
    assert model.bundle.was_replaced()
    with pytest.raises(AlteredError, match="the bundle was replaced by another one meanwhile: load it again"):
        model.check()


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
    for odd in ("[1]", "5", "[" * 100_000):
        (altered / "evidence.json").write_text(odd)
        with pytest.raises(FormatError, match="evidence cannot be read"):
            Bundle(altered).evidence()
        assert load(altered, precision="fp32").check()
    (altered / "evidence.json").unlink()
    assert Bundle(altered).evidence() == {}


@pytest.mark.skipif(os.name == "nt", reason="links are Unix's")
def test_evidence_that_is_a_link_is_not_read(altered: Path, tmp_path: Path) -> None:
    (altered / EVIDENCE).rename(tmp_path / "elsewhere.json")
    (altered / EVIDENCE).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(FormatError, match="it is a symbolic link, not a file"):
        Bundle(altered).evidence()
    assert load(altered, precision="fp32").check()


@pytest.mark.parametrize("change", [lambda data: data.update(name="\ud800"), lambda data: data["contract"].update(labels=["a", "b", "\udfff"])])
def test_half_of_a_surrogate_pair_is_no_text(altered: Path, change) -> None:  # type: ignore[no-untyped-def]
    rewrite(altered, change)
    with pytest.raises(FormatError, match=r"the manifest cannot be read .*surrogates not allowed"):
        Bundle(altered)


def test_a_name_that_no_file_can_have_is_told_as_such(altered: Path) -> None:
    rewrite(altered, lambda data: data["variants"][0].update(file="x" * 300))
    with pytest.raises(AlteredError, match=r"the manifest lists this file, but it cannot be read \(File name too long\)"):
        load(altered, precision="fp32")
    for name in ("y" * 300, "z" * 5000):
        with pytest.raises(BundleError, match="there is no such folder"):
            load(name)


@pytest.mark.skipif(os.name == "nt", reason="pipes are Unix's")
def test_what_is_there_instead_of_a_bundle_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for name, kind in (("pipe", "a pipe"), ("file", "a file")):
        with pytest.raises(BundleError, match=f"expected a bundle .*, but this is {kind}"):
            Bundle(tmp_path / name)
