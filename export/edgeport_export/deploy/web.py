"""A static folder with a page that answers images in the browser: onnxruntime-web in WebAssembly, on one thread, which any server can serve.

The page's own code resizes as Pillow does (assets/edgeport.mjs), so what a browser does differently is decoding alone; a stored photograph, beside Pillow's
pixels of it, shows by how much. onnxruntime-web comes from npm: three files of its 139 MB, held to their hashes.
"""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from edgeport_export.errors import ExportError
from edgeport_export.network.size_sweep import random_image
from edgeport_runtime import Bundle, Contract, InputError
from edgeport_runtime.images import Pixel, prepare

from .deployment import deployment
from .script_files import SHARED, script_precisions, write_script_files

VERSION = "1.30.0"
FILES = {  # of the package's folder `dist`, with their SHA-256
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
PHOTO, PHOTO_PIXELS, NOTICES = "photo.jpg", "photo.bin", "third-party.txt"
PHOTO_SHARE = 1.7  # of the network's size, so that it is shrunk


def deploy_web(bundle: Bundle, out: Path, *, precision: str | None = None, package: Path | None = None, force: bool = False) -> Path:
    """Write the folder. `precision`: both variants if left out, between which the page lets one choose. `package`: a folder of the npm package
    onnxruntime-web, of exactly VERSION; fetched with npm if left out.

    Raises InputError for a model that a page cannot show, ExportError if the package cannot be had, and OutputError.
    """
    precisions = script_precisions(bundle, precision)
    contract = bundle.manifest.contract
    parts = package_files(package)
    photo, pixels = made_photo(contract)
    with deployment(out, "web", bundle, ",".join(precisions), force=force) as folder:
        (folder / "onnxruntime").mkdir()
        for name, content in parts.items():
            (folder / "onnxruntime" / name).write_bytes(content)
        (folder / PHOTO).write_bytes(photo)
        (folder / PHOTO_PIXELS).write_bytes(np.ascontiguousarray(pixels).tobytes())
        (folder / NOTICES).write_text(notices(), encoding="utf-8")
        described = {"dtype": "uint8", "dims": list(pixels.shape)}
        write_script_files(folder, bundle, precisions, ("index.html", "page.css", "page.mjs", *SHARED), photo=described)
    return out


def made_photo(contract: Contract) -> tuple[bytes, Pixel]:
    """Waves and grain as JPEG, larger than the network's size, and what `prepare` makes of it. A model that keeps sizes gets one that it promises."""
    pixels = contract.pixels
    share = 1.0 if pixels.resize == "keep" else PHOTO_SHARE
    shape = (1, round(share * pixels.height), round(share * pixels.width), 3)
    file = io.BytesIO()
    Image.fromarray(random_image(shape, np.random.default_rng(0))[0]).save(file, "JPEG", quality=92)
    return file.getvalue(), prepare(file.getvalue(), pixels)


def package_files(package: Path | None) -> dict[str, bytes]:
    """The needed files of onnxruntime-web by name. Raises ExportError if they cannot be had, InputError for a folder that holds others."""
    found = _from_npm() if package is None else {name: _read(package / "dist" / name) for name in FILES}
    for name, content in found.items():
        if hashlib.sha256(content).hexdigest() != FILES[name]:
            raise InputError(f"{name} is not that of onnxruntime-web {VERSION}: install exactly this version, or leave --package out")
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected a folder of the npm package onnxruntime-web, with `dist` in it ({error.strerror})") from error


def _from_npm() -> dict[str, bytes]:
    """Fetched once, and kept in the cache. `npm pack` asks the registry that npm is set up for."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeport" / f"onnxruntime-web-{VERSION}"
    if all((kept / name).is_file() and hashlib.sha256((kept / name).read_bytes()).hexdigest() == digest for name, digest in FILES.items()):
        return {name: (kept / name).read_bytes() for name in FILES}
    npm = shutil.which("npm")
    if npm is None:
        raise ExportError("onnxruntime-web comes from npm, which is not installed: install Node with npm, or name the package's folder (--package)")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [npm, "pack", f"onnxruntime-web@{VERSION}", "--silent", "--ignore-scripts"], cwd=folder, capture_output=True, text=True, check=False
        )
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            why = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[0]
            raise ExportError(f"onnxruntime-web {VERSION} cannot be fetched with npm ({why}): go online, or name the package's folder (--package)")
        found = _unpacked(archives[0])
    kept.mkdir(parents=True, exist_ok=True)
    for name, content in found.items():
        part = kept / f".{name}.part"
        part.write_bytes(content)
        part.replace(kept / name)
    return found


def _unpacked(archive: Path) -> dict[str, bytes]:
    """Read, and not extracted: no path of the archive's is written."""
    found = {}
    with tarfile.open(archive) as opened:
        for name in FILES:
            member = opened.extractfile(f"package/dist/{name}")
            assert member is not None  # extractfile raises KeyError if it is missing; these are plain files
            found[name] = member.read()
    return found


def notices() -> str:
    """The licenses of onnxruntime and of what it is built with, as its Python package has them: onnxruntime-web's own package holds none."""
    folder = Path(onnxruntime.__file__).parent
    listed = [folder / "LICENSE", folder / "ThirdPartyNotices.txt"]
    return "\n\n".join(each.read_text(encoding="utf-8", errors="replace") for each in listed if each.is_file())
