"""The bundle on disk: the manifest read into values, and every file handed out only after its sha256 agreed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from .errors import AlteredError, BundleError, ContractError, FormatError
from .manifest import FORMAT, File, Manifest, Variant, parse_manifest, sealed
from .protobuf import Array, read_tensor

MANIFEST, EVIDENCE = "manifest.json", "evidence.json"


class Bundle:
    """A bundle whose manifest has been read; `sha256` is the manifest's, which holds those of all files.

    Raises BundleError if there is none, FormatError if it cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest, self.sha256 = _manifest(self.folder)

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
        if Path(file.file).is_absolute() or ".." in Path(file.file).parts:
            raise FormatError(f"{self.folder / MANIFEST}: {file.file!r} points outside the bundle")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise AlteredError(f"{path}: the manifest lists this file, but it cannot be read ({error.strerror}); export or copy the bundle again") from error
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise AlteredError(f"{path}: the content differs from what the manifest promises (sha256); export or copy the bundle again")
        return data

    def read_all(self) -> None:
        """Check every file that the manifest lists. Raises AlteredError."""
        for case in self.manifest.golden:
            for file in (*case.inputs, *case.outputs, *case.levels.values(), *(each for files in case.host.values() for each in files)):
                self.read(file)
        for variant in self.manifest.variants:
            self.read(variant)

    def tensor(self, file: File) -> Array:
        """Read one golden tensor."""
        return read_tensor(self.read(file))[1]

    def evidence(self) -> dict[str, Any]:
        """What was measured when the bundle was made; empty if the file is missing."""
        path = self.folder / EVIDENCE
        try:
            return dict(json.loads(path.read_text())) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise FormatError(f"{path}: the evidence cannot be read ({error})") from error


def _manifest(folder: Path) -> tuple[Manifest, str]:
    path = folder / MANIFEST
    if not folder.is_dir():
        came = "this is a file" if folder.exists() else "there is no such folder"
        raise BundleError(f"{folder}: expected a bundle (a folder with {MANIFEST}), but {came}")
    try:
        content = path.read_bytes()
        data = json.loads(content.decode("utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{folder}: expected a bundle, but there is no {MANIFEST} in this folder") from error
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: the manifest cannot be read ({error}); export or copy the bundle again") from error
    found = data.get("format") if isinstance(data, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise FormatError(f"{path}: this is not a manifest of edgeport (no format version)")
    if found > FORMAT:
        raise FormatError(f"{path}: the bundle has format {found}, this edgeport-runtime reads up to {FORMAT}; upgrade edgeport-runtime")
    if sealed(data) != data:
        raise AlteredError(f"{path}: the content is not what was written (sha256); export or copy the bundle again")
    try:
        return parse_manifest(data), hashlib.sha256(content).hexdigest()
    except (KeyError, TypeError, ValueError, AttributeError, ContractError) as error:
        raise FormatError(f"{path}: the manifest is incomplete or malformed ({type(error).__name__}: {error}); export or copy the bundle again") from error
