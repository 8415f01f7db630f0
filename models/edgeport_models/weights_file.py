"""Tensors by name from a file that anybody may have made: .safetensors, whole or in shards, or what torch.save wrote. Nothing in it is executed."""

import json
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgeport_runtime.regular_files import what_is

from .errors import CheckpointError

MOST_CLASSES = 100
INDEX = ".index.json"  # of shards, as Accelerate and transformers write it
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
BESIDE = re.compile(r"optimizer|scheduler|scaler|random_states|training_args|rng_state")  # what Accelerate and transformers put into the same folder
DEPTH = 5  # of dicts in dicts in which tensors are looked for
NO_CHECKPOINT = "expected .safetensors, or what torch.save(module.state_dict(), file) wrote"
ARCHIVES = {  # a file in a zip archive that torch.load does not read -> what the archive is
    "constants.pkl": "a scripted module (torch.jit.save), whose code would have to be run; give the state_dict of the module before scripting",
    "archive_format": "an exported program (torch.export.save); give the state_dict of the module that was exported",
}
CONTENT = {  # how a file begins, in lower case -> what it is
    b"\x89hdf": "HDF5, as Keras writes it",
    b"gguf": "GGUF, a language model's format",
    b"<!doctype": "a web page, as a failed download leaves it",
    b"<html": "a web page, as a failed download leaves it",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself (git lfs pull fetches it)",
    b"\x89png": "an image",
    b"\xff\xd8\xff": "an image",
    b"\x1f\x8b": "compressed with gzip (gunzip unpacks it)",
}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Every tensor of a file. `tensors`: by dotted name; a dict in a dict adds its key in front, as in `model_ema.conv.weight`.

    `places`: for each name the dict that it stands in, "" or `model_ema.`. `versions`: torch's notes on the versions of modules, by place.
    `unread`: classes of objects that stand in the file and were not made. `lists`: where tensors stand in a row, without names.
    """

    tensors: Mapping[str, Any]
    places: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()


def read_weights(path: str | Path) -> Weights:
    """Every tensor of a checkpoint, of an index of shards, or of a folder with one of these. Raises CheckpointError."""
    path = _file_of(Path(path))
    if path.name.endswith(INDEX):
        return _shards(path)
    with path.open("rb") as file:
        start = file.read(32).lower()
    if not start:
        raise CheckpointError(f"{path}: this file is empty; {NO_CHECKPOINT}")
    foreign = next((kind for magic, kind in CONTENT.items() if start.startswith(magic)), None)
    if foreign is not None:
        raise CheckpointError(f"{path}: this file is {foreign}; {NO_CHECKPOINT}")
    found = _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)
    if not found.tensors:
        raise CheckpointError(f"{path}: expected tensors by name, but the file holds none; {NO_CHECKPOINT}")
    return found


def _file_of(path: Path) -> Path:
    """The file that a path means: itself, or the one checkpoint or index in a folder."""
    if not path.is_dir():
        require_file(path)
        return path
    if any(path.glob("*.distcp")):
        raise CheckpointError(
            f"{path}: a distributed checkpoint; make one file of it with python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pt"
        )
    files = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES and not BESIDE.match(each.name))
    found = sorted(path.glob(f"*{INDEX}")) or files
    if len(found) != 1:
        came = f"it holds {', '.join(each.name for each in found[:5])}; name one of them" if found else "there is none in it"
        raise CheckpointError(f"{path}: expected a checkpoint or a folder with one checkpoint, but {came}")
    return found[0]


def require_file(path: Path) -> None:
    """Raises CheckpointError if there is no such file."""
    if path.is_dir():
        raise CheckpointError(f"{path}: expected a checkpoint, but this is a folder; name the file in it")
    came = what_is(path)
    if came != "a file":
        raise CheckpointError(f"{path}: expected a checkpoint, but {f'this is {came}' if came else 'there is no such file'}")


def _shards(index: Path) -> Weights:
    """All files that an index names. One that is missing would leave its layers at random values, so it is an error."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: expected an index of shards, with a weight_map from names to files ({type(error).__name__}: {error})") from error
    parts = []
    for name in names:
        shard = index.parent / str(name)
        if shard.parent.resolve() != index.parent.resolve() or not shard.is_file():
            raise CheckpointError(f"{index}: it names the shard {name}, which does not lie beside it; copy all {len(names)} shards into one folder")
        parts.append(read_weights(shard))
    return Weights(
        tensors={name: tensor for part in parts for name, tensor in part.tensors.items()},
        places={name: place for part in parts for name, place in part.places.items()},
        unread=tuple(sorted({each for part in parts for each in part.unread})),
    )


def _safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            return Weights(tensors={key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118  # safe_open is no dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: the checkpoint is damaged or truncated ({error}); copy or train it again") from error


class _Unmade:
    """Stands for every class that is not torch's: calling it makes an empty dict, whose attributes are what the object's would have been.

    torch's reader of weights calls nothing but what it knows and what it is given here, so a stranger's file executes nothing.
    """

    def __new__(cls, *arguments: Any) -> Any:
        return OrderedDict()


class _UnmadeNumber:
    """Stands for numpy's scalars and their types, whose pickled state is a tuple."""

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _torch_file(path: Path) -> Weights:
    unread = _foreign_classes(path)
    try:
        loaded = _unpickled(path, unread)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"the class or function {found[1]}" if found else f"an object that is no tensor ({_reason(error)})"
        raise CheckpointError(
            f"{path}: the file holds more than tensors: {what}, which is not loaded, since that could run its code; save the module's state_dict()"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path}: the checkpoint is damaged or truncated ({_reason(error)}); copy or train it again") from error
    tensors: dict[str, Any] = {}
    places: dict[str, str] = {}
    versions: dict[str, Mapping[str, Any]] = {}
    for place, key, value in _leaves(loaded, versions):
        tensors[place + key], places[place + key] = value, place
    if not tensors:
        got = f"a dict of {', '.join(map(str, list(loaded)[:8]))}" if isinstance(loaded, dict) and loaded else type(loaded).__name__
        classes = f" and objects of {', '.join(unread[:5])}, which are not made" if unread else ""
        raise CheckpointError(f"{path}: expected tensors by name, got {got}{classes}; save the module's state_dict()")
    return Weights(tensors=tensors, places=places, versions=versions, unread=tuple(unread), lists=tuple(_lists(loaded)))


def _unpickled(path: Path, unread: list[str]) -> Any:
    """What torch.load gives, with stand-ins for classes that are not torch's. A file of the form before PyTorch 1.6 names them one by one."""
    for _ in range(MOST_CLASSES):
        stand_ins = [(_UnmadeNumber if name.startswith("numpy.") else _Unmade, name) for name in unread]
        try:
            with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():  # type: ignore[arg-type]
                warnings.simplefilter("ignore")  # of pickle protocols, which the error says if one matters
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            named = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
            if named is None or named[1] in unread:
                raise
            unread += [named[1]] if "." in named[1] else [f"builtins.{named[1]}"]
    raise pickle.UnpicklingError(f"more than {MOST_CLASSES} classes")


def _foreign_classes(path: Path) -> list[str]:
    """Names of what the file would have to import, read without importing. Raises CheckpointError for archives that hold programs."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    for name, kind in ARCHIVES.items():
        if name in names:
            raise CheckpointError(f"{path}: this file is {kind}")
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:  # whatever a reader of damaged files raises
        raise CheckpointError(f"{path}: the checkpoint is damaged or truncated ({_reason(error)}); copy or train it again") from error


def _leaves(found: Any, versions: dict[str, Mapping[str, Any]], place: str = "", depth: int = 0) -> Iterator[tuple[str, str, Tensor]]:
    """The tensors in dicts, and in whole modules, which are dicts with attributes here: (place, key, tensor)."""
    if depth > DEPTH or not isinstance(found, dict):
        return
    state = getattr(found, "__dict__", {})
    if isinstance(state.get("_metadata"), Mapping):
        versions[place] = state["_metadata"]
    if "_modules" in state and "_parameters" in state:
        yield from _module_leaves(state, place)
        return
    for key, value in found.items():
        if isinstance(value, Tensor) or str(key).endswith("_extra_state"):
            yield place, str(key), value
        else:
            yield from _leaves(value, versions, f"{place}{key}.", depth + 1)


def _lists(found: Any, place: str = "", depth: int = 0) -> Iterator[str]:
    """Where dicts hold a list of tensors, as torch_ema's `shadow_params`."""
    if depth > DEPTH or not isinstance(found, dict):
        return
    for key, value in found.items():
        if isinstance(value, list | tuple) and value and all(isinstance(each, Tensor) for each in value):
            yield f"{place}{key}"
        yield from _lists(value, f"{place}{key}.", depth + 1)


def _module_leaves(state: Mapping[str, Any], place: str, prefix: str = "") -> Iterator[tuple[str, str, Tensor]]:
    """What `state_dict` would give of a pickled module."""
    hidden = state.get("_non_persistent_buffers_set") or ()
    own = {**(state.get("_parameters") or {}), **{key: each for key, each in (state.get("_buffers") or {}).items() if key not in hidden}}
    for key, value in own.items():
        if isinstance(value, Tensor):
            yield place, f"{prefix}{key}", value.detach()
    for key, module in (state.get("_modules") or {}).items():
        if isinstance(module, dict):
            yield from _module_leaves(module.__dict__, place, f"{prefix}{key}.")


def _reason(error: Exception) -> str:
    """The first sentence of a library's error, with its kind if that is a mere number: torch's KeyError of a pickle is `101`."""
    text = str(error).partition("WeightsUnpickler error:")[2].strip() or str(error)
    words = text.split(". ")[0].splitlines()
    return words[0] if words and not words[0].isdigit() else f"{type(error).__name__}{f' {words[0]}' if words else ''}"
