"""A folder that is whole or not there, known by its mark, with the hashes of its files."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edgeport_export import OutputError
from edgeport_export.deploy.deployment import MARK, chosen_variant, deployment, gathered_batch, read_deployment, served_name
from edgeport_runtime import Bundle, FormatError, InputError

FIXTURES = Path(__file__).parents[2] / "fixtures"
BUNDLE = Bundle(FIXTURES / "format2" / "classifier")


def made(out: Path, *, force: bool = False, text: str = "a") -> Path:
    with deployment(out, "node", BUNDLE, "fp32", force=force) as folder:
        (folder / "x").mkdir()
        (folder / "x" / "a.txt").write_text(text)
    return out


def test_it_says_what_it_was_made_of(tmp_path: Path) -> None:
    data = json.loads((made(tmp_path / "d") / MARK).read_text())
    assert (data["target"], data["name"], data["precision"], data["manifest_sha256"]) == ("node", "tiny-classifier", "fp32", BUNDLE.sha256)
    assert data["files"] == {"x/a.txt": hashlib.sha256(b"a").hexdigest()}
    found = read_deployment(tmp_path / "d")
    assert (found.target, found.name, found.altered) == ("node", "tiny-classifier", ())


def test_what_was_altered_is_found(tmp_path: Path) -> None:
    folder = made(tmp_path / "d")
    (folder / "x" / "a.txt").write_text("b")
    assert read_deployment(folder).altered == ("x/a.txt",)
    (folder / "x" / "a.txt").unlink()
    assert read_deployment(folder).altered == ("x/a.txt",)


def test_names_that_leave_the_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    folder = made(tmp_path / "d")
    data = json.loads((folder / MARK).read_text())
    data["files"] = {"../secret": hashlib.sha256(b"s").hexdigest()}
    (folder / MARK).write_text(json.dumps(data))
    assert read_deployment(folder).altered == ("../secret",)


def test_a_bundle_stays_as_it_is(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUNDLE.folder, tmp_path / "bundle"))
    for out in (folder / "one", folder / "a" / "b", folder):
        with pytest.raises(InputError, match="is inside the bundle, which stays as it is"), deployment(out, "node", Bundle(folder), "fp32", force=True):
            pass
    with pytest.raises(FormatError, match="it is a bundle: edgeport-run check"):
        read_deployment(folder)
    with pytest.raises(FormatError, match="there is no such folder"):
        read_deployment(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"files": 5, "target": "x", "name": "y"}', "[" * 100_000])
def test_other_folders_are_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / MARK).write_text(content)
    with pytest.raises(FormatError, match=r"expected a folder that `edgeport deploy` made, (with|but) its deployment\.json"):
        read_deployment(tmp_path)


def test_force_replaces_its_own_kind_alone(tmp_path: Path) -> None:
    made(tmp_path / "d")
    with pytest.raises(OutputError, match="exists already; give another folder, or replace it"):
        made(tmp_path / "d")
    made(tmp_path / "d", force=True, text="new")
    assert (tmp_path / "d" / "x" / "a.txt").read_text() == "new"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_text("p")
    with pytest.raises(OutputError, match="exists and is no deployment, so force does not replace it"):
        made(tmp_path / "mine", force=True)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    with pytest.raises(OutputError, match="exists and is no deployment"):
        made(tmp_path / "bundle", force=True)
    (tmp_path / "file").write_text("f")
    with pytest.raises(OutputError, match="is a file; give another folder for the deployment"):
        made(tmp_path / "file", force=True)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), deployment(tmp_path / "d", "node", BUNDLE, "fp32", force=False) as folder:
        (folder / "a").write_text("a")
        raise RuntimeError
    assert [each.name for each in tmp_path.iterdir() if each.is_dir()] == []


def test_the_variant_is_the_named_one_or_what_auto_takes() -> None:
    assert chosen_variant(BUNDLE, "fp32").precision == "fp32" and chosen_variant(BUNDLE, "int8").precision == "int8"
    assert chosen_variant(BUNDLE, None, batch=8).precision == BUNDLE.manifest.auto.taken(8)
    with pytest.raises(InputError, match=r"holds no fp16: give one of fp32, int8 \(--precision\)"):
        chosen_variant(BUNDLE, "fp16")


def test_a_server_gathers_single_images_only_where_the_export_compared_them() -> None:
    assert gathered_batch(BUNDLE) == 8
    bundle = Bundle(BUNDLE.folder)
    contract = bundle.manifest.contract
    first = (replace(contract.outputs[0], shape=("height", 3)),)
    bundle.manifest = replace(bundle.manifest, contract=replace(contract, task="tensors", labels=(), outputs=(replace(first[0], kind="tensor"),)))
    assert gathered_batch(bundle) == 0


@pytest.mark.parametrize(
    ("stored", "given", "expected"),
    [("tiny", None, "tiny"), ("My model (\N{LATIN SMALL LETTER U WITH DIAERESIS})", None, "My-model"), ("///", None, "model"), ("x", "y", "y")],
)
def test_a_server_calls_a_model_by_a_plain_name(stored: str, given: str | None, expected: str) -> None:
    bundle = Bundle(BUNDLE.folder)
    bundle.manifest = replace(bundle.manifest, name=stored)
    assert served_name(bundle, given) == expected
    for other in ("", "a b", "../x", ".hidden"):
        with pytest.raises(InputError, match=r"a model's name is of letters, digits and any of _\.-, got"):
            served_name(bundle, other)
