"""What all targets share: a folder that appears whole or not at all, the variant that is taken, and the mark by which one knows what it was made of."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeport_export.bundle.staging import Kind, reserved, staged
from edgeport_runtime import Bundle, FormatError, InputError, __version__
from edgeport_runtime.bundle import MANIFEST
from edgeport_runtime.engine import has_rows
from edgeport_runtime.manifest import MOST_BYTES, Variant
from edgeport_runtime.regular_files import read_regular, read_text

MARK = "deployment.json"
DEPLOYMENT = Kind("deployment", MARK)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # of a model on a server: it is a folder's name, and a part of addresses


@contextmanager
def deployment(out: Path, target: str, bundle: Bundle, precision: str, *, force: bool) -> Iterator[Path]:
    """An empty folder; on a clean exit it becomes `out`, with the hashes of all that was written. Raises OutputError as an export does."""
    if out.resolve().is_relative_to(bundle.folder.resolve()):
        raise InputError(f"{out} is inside the bundle, which stays as it is; give another folder (--out)")
    with reserved(out, force=force, kind=DEPLOYMENT) as place, staged(place, DEPLOYMENT) as folder:
        yield folder
        made = {"target": target, "name": bundle.manifest.name, "precision": precision, "manifest_sha256": bundle.sha256, "edgeport": __version__}
        files = {path.relative_to(folder).as_posix(): _sha256(path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()}
        (folder / MARK).write_text(json.dumps({**made, "files": files}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A folder that was made. `target`: the name of its module. `altered`: files that are other than they were, or gone."""

    folder: Path
    target: str
    name: str
    altered: tuple[str, ...]


def read_deployment(folder: Path) -> Deployment:
    """Raises FormatError for a folder that no target made."""
    try:
        made: Any = json.loads(read_text(folder / MARK))
        files = {str(name): str(digest) for name, digest in made["files"].items()}
        target, name = str(made["target"]), str(made["name"])
    except OSError as error:
        came = "there is no such folder" if not folder.exists() else "it is a bundle: edgeport-run check" if (folder / MANIFEST).exists() else error.strerror
        raise FormatError(f"{folder}: expected a folder that `edgeport deploy` made, with its {MARK} ({came})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{folder}: expected a folder that `edgeport deploy` made, but its {MARK} is damaged; make it again") from error
    return Deployment(folder=folder, target=target, name=name, altered=tuple(each for each in files if not _is_same(folder, each, files[each])))


def _is_same(folder: Path, name: str, digest: str) -> bool:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        return False
    try:
        return _sha256(read_regular(path, MOST_BYTES)) == digest
    except OSError:
        return False


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def chosen_variant(bundle: Bundle, precision: str | None, *, batch: int = 1) -> Variant:
    """The named one; left out, what "auto" takes for calls of so many images. Raises InputError if the bundle does not hold it."""
    name = precision or bundle.manifest.auto.taken(batch)
    held = [each.precision for each in bundle.manifest.variants]
    if name not in held:
        raise InputError(f"{bundle.folder} holds no {name}: give one of {', '.join(held)} (--precision)")
    return bundle.variant(name)


def served_name(bundle: Bundle, name: str | None) -> str:
    """Of the model on a server: `name`, or the bundle's without what such names cannot have. Raises InputError for another name."""
    if name is None:
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", bundle.manifest.name).strip("-.") or "model"
    if not NAME.fullmatch(name):
        raise InputError(f"a model's name is of letters, digits and any of _.-, got {name!r}")
    return name


def gathered_batch(bundle: Bundle) -> int:
    """The largest batch that a server may make of single images; 0 if the export compared none alone and among others."""
    contract = bundle.manifest.contract
    return contract.largest_batch if has_rows(contract) else 0
