"""The bundle on disk: the manifest read into values, and every file handed out only after its sha256 agreed.

A bundle of strangers is data. Nothing in it is executed or imported, and no file is read that is a link, no regular file, outside of the folder, or
larger than it may be.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from .errors import AlteredError, BundleError, ContractError, FormatError, first_line
from .manifest import FORMAT, File, Manifest, Variant, files_of, parse_manifest, sealed
from .protobuf import Array, read_tensor
from .regular_files import read_regular, what_is

MANIFEST, EVIDENCE = "manifest.json", "evidence.json"
MOST_JSON_BYTES = 16 * 2**20
MOST_TENSOR_BYTES = 2**29
AGAIN = "export or copy the bundle again"


class Bundle:
    """A bundle whose manifest has been read; `sha256` is the manifest's, which holds those of all files.

    `sha256`: what it must be, for whoever got it by another way than the bundle.
    Raises BundleError if there is none, FormatError if it cannot be read, AlteredError if it is another one.
    """

    def __init__(self, folder: str | Path, sha256: str | None = None) -> None:
        self.folder = Path(folder)
        self.manifest, self.sha256 = _manifest(self.folder)
        if sha256 is not None and self.sha256 != sha256.strip().lower():
            raise AlteredError(f"{self.folder / MANIFEST}: its sha256 is {self.sha256}, not {sha256}: this is not the bundle that was meant")

    def __repr__(self) -> str:
        auto, kept = self.manifest.auto, ", ".join(variant.precision for variant in self.manifest.variants)
        return f"<Bundle {str(self.folder)!r}: {self.manifest.contract.task}, {kept}; auto is {auto.precision}, because {auto.reason}>"

    def variant(self, precision: str) -> Variant:
        """Raises BundleError naming the precisions that the bundle has."""
        for each in self.manifest.variants:
            if each.precision == precision:
                return each
        raise BundleError(f"{self.folder}: no {precision} variant in this bundle; it has {', '.join(v.precision for v in self.manifest.variants)}")

    def read(self, file: File | Variant) -> bytes:
        """Read one file once and check it. Raises AlteredError if the content is not the manifest's."""
        path = self.folder / file.file
        try:
            for part in (path, *path.parents):
                if part == self.folder:
                    break
                if part.is_symlink():
                    raise AlteredError(f"{part}: a file of a bundle is no link; copy the bundle with what its links point to, as cp -rL does")
            data = read_regular(path, file.bytes if isinstance(file, Variant) else MOST_TENSOR_BYTES, links=False)
        except (OSError, ValueError) as error:
            raise AlteredError(f"{path}: the manifest lists this file, but it cannot be read ({first_line(error)}); {self._remedy()}") from error
        if hashlib.sha256(data).hexdigest() != file.sha256 or (isinstance(file, Variant) and len(data) != file.bytes):
            raise AlteredError(f"{path}: the content differs from what the manifest promises (sha256); {self._remedy()}")
        return data

    def was_replaced(self) -> bool:
        """Whether another bundle lies in the folder by now."""
        try:
            return _content(self.folder / MANIFEST)[1] != self.sha256
        except (OSError, BundleError):
            return False

    def _remedy(self) -> str:
        return "the bundle was replaced by another one meanwhile: load it again" if self.was_replaced() else AGAIN

    def read_all(self) -> None:
        """Check every file that the manifest lists. Raises AlteredError."""
        for case in self.manifest.golden:
            for file in files_of(case):
                self.read(file)
        for variant in self.manifest.variants:
            self.read(variant)

    def tensor(self, file: File) -> Array:
        """Read one golden tensor."""
        return read_tensor(self.read(file))[1]

    def evidence(self) -> dict[str, Any]:
        """What was measured when the bundle was made; empty if the file is missing. No hash covers it, and nothing depends on it."""
        path = self.folder / EVIDENCE
        try:
            return dict(json.loads(read_regular(path, MOST_JSON_BYTES, links=False).decode("utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise FormatError(f"{path}: the evidence cannot be read ({first_line(error)})") from error


def _content(path: Path) -> tuple[bytes, str]:
    """The manifest's bytes, and their hash."""
    content = read_regular(path, MOST_JSON_BYTES, links=False)
    return content, hashlib.sha256(content).hexdigest()


def _manifest(folder: Path) -> tuple[Manifest, str]:
    path = folder / MANIFEST
    came = what_is(folder)
    if came != "a folder":
        raise BundleError(f"{folder}: expected a bundle (a folder with {MANIFEST}), but {f'this is {came}' if came else 'there is no such folder'}")
    try:
        content, sha256 = _content(path)
        data = json.loads(content.decode("utf-8"), parse_constant=_no_constant)
        json.dumps(data, ensure_ascii=False).encode()  # half of a surrogate pair is no text, and nothing could print it
    except FileNotFoundError as error:
        raise BundleError(f"{folder}: expected a bundle, but there is no {MANIFEST} in this folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the manifest cannot be read ({first_line(error)}); {AGAIN}") from error
    found = data.get("format") if isinstance(data, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise FormatError(f"{path}: this is not a manifest of edgeport (no format version)")
    if found > FORMAT:
        raise FormatError(f"{path}: the bundle has format {found}, this edgeport-runtime reads up to {FORMAT}; install {_writer(data)}")
    try:
        if sealed(data) != data:
            raise AlteredError(f"{path}: the content is not what was written (sha256); {AGAIN}")
        return parse_manifest(data), sha256
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, ContractError) as error:
        raise FormatError(f"{path}: the manifest is incomplete or malformed ({type(error).__name__}: {first_line(error)}); {AGAIN}") from error


def _writer(data: dict[str, Any]) -> str:
    """What reads a manifest of a newer format: at least the version that wrote it, if it says so in text that is a version."""
    provenance = data.get("provenance")
    version = str(provenance.get("edgeport", "")) if isinstance(provenance, dict) else ""
    return f"edgeport-runtime {version} or newer" if re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}", version) else "a newer edgeport-runtime"


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
