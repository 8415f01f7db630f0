"""The page's folder, its parts from npm, and the photograph by which a decoder is measured. The page itself is looked at in tests/test_deployments.py."""

import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeport_export import ExportError
from edgeport_export.deploy import web
from edgeport_export.deploy.deployment import read_deployment
from edgeport_export.deploy.web import deploy_web, made_photo, notices, package_files
from edgeport_runtime import Bundle, InputError
from edgeport_runtime.images import prepare

FIXTURES = Path(__file__).parents[2] / "fixtures" / "format2"
CLASSIFIER, GENERATOR = Bundle(FIXTURES / "classifier"), Bundle(FIXTURES / "generator")
PARTS = {name: f"// {name}".encode() for name in web.FILES}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Small files in place of the package's."""
    monkeypatch.setattr(web, "FILES", {name: hashlib.sha256(content).hexdigest() for name, content in PARTS.items()})
    return PARTS


@pytest.fixture
def package(parts: dict[str, bytes], tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    (folder / "dist").mkdir(parents=True)
    for name, content in parts.items():
        (folder / "dist" / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("bundle", [CLASSIFIER, GENERATOR], ids=["classifier", "generator"])
def test_the_folder_holds_all_that_the_page_asks_for(bundle: Bundle, package: Path, tmp_path: Path) -> None:
    folder = deploy_web(bundle, tmp_path / "d", package=package)
    assert {name: (folder / "onnxruntime" / name).read_bytes() for name in PARTS} == PARTS
    page, script = (folder / "index.html").read_text(), (folder / "page.mjs").read_text()
    for name in ("page.css", "page.mjs", "third-party.txt"):
        assert f'"{name}"' in page and (folder / name).is_file()
    for name in ("photo.jpg", "photo.bin", "about.json", "golden.json"):
        assert f'"{name}"' in script and (folder / name).is_file()
    assert "http:" not in page + script + (folder / "page.css").read_text() and "https:" not in page + script
    dims = json.loads((folder / "about.json").read_text())["photo"]["dims"]
    pixels = np.frombuffer((folder / "photo.bin").read_bytes(), np.uint8).reshape(dims)
    np.testing.assert_array_equal(pixels, prepare((folder / "photo.jpg").read_bytes(), bundle.manifest.contract.pixels))
    assert read_deployment(folder).altered == ()


def test_the_photograph_is_shrunk_unless_sizes_are_kept() -> None:
    for bundle, side in ((CLASSIFIER, 27), (GENERATOR, 16)):
        photo, pixels = made_photo(bundle.manifest.contract)
        assert Image.open(io.BytesIO(photo)).size == (side, side) and pixels.shape == (16, 16, 3)


def test_other_versions_are_refused(package: Path) -> None:
    name = next(iter(PARTS))
    (package / "dist" / name).write_bytes(b"other")
    with pytest.raises(InputError, match=f"{name} is not that of onnxruntime-web {web.VERSION}: install exactly this version"):
        package_files(package)
    (package / "dist" / name).unlink()
    with pytest.raises(InputError, match="expected a folder of the npm package onnxruntime-web, with `dist` in it"):
        package_files(package)


def npm(folder: Path, script: str) -> None:
    """A program of this name."""
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)


def test_the_package_is_fetched_once(parts: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "made.tgz"
    with tarfile.open(archive, "w:gz") as made:
        for name, content in {**{f"package/dist/{each}": content for each, content in parts.items()}, "package/evil": b"x"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    npm(tmp_path, f'echo "$@" >> {tmp_path}/asked; cp {archive} onnxruntime-web.tgz')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert package_files(None) == parts and package_files(None) == parts
    assert (tmp_path / "asked").read_text().split()[:2] == ["pack", f"onnxruntime-web@{web.VERSION}"] and len(
        (tmp_path / "asked").read_text().splitlines()
    ) == 1
    kept = tmp_path / "cache" / "edgeport" / f"onnxruntime-web-{web.VERSION}"
    assert sorted(each.name for each in kept.iterdir()) == sorted(parts)
    next(kept.iterdir()).write_bytes(b"cut")
    assert package_files(None) == parts and len((tmp_path / "asked").read_text().splitlines()) == 2


def test_offline_and_without_npm_one_sentence_says_what_to_do(parts: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    npm(tmp_path, "echo 'npm error network' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ExportError, match=r"onnxruntime-web 1\.\S+ cannot be fetched with npm \(npm error network\): go online, or name the package's folder"):
        deploy_web(CLASSIFIER, tmp_path / "d")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(ExportError, match="onnxruntime-web comes from npm, which is not installed"):
        deploy_web(CLASSIFIER, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_notices_are_onnxruntimes() -> None:
    assert "MIT License" in notices() and "protobuf" in notices()


def test_the_script_is_whole() -> None:
    """Without Node nothing reads it here; with it, its syntax is looked at."""
    import shutil

    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node here (Debian's nodejs)")
    for name in ("page.mjs", "main.mjs", "edgeport.mjs", "detector.mjs"):
        done = subprocess.run([node, "--check", web.Path(web.__file__).parent / "assets" / name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
