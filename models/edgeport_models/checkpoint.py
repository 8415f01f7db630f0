"""Checkpoints: weights in a .safetensors file whose metadata says which network they belong to and what it was trained on."""

import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeport_runtime import Contract, ContractError

from .errors import CheckpointError

KEY = "edgeport"
NESTS = ("state_dict", "model_state_dict", "model", "params_ema", "params", "ema")  # where trainers put the weights


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a checkpoint says about itself: registry name, constructor arguments, contract (with the labels), data and recipe."""

    network: str
    arguments: Mapping[str, Any]
    contract: Contract
    data: str
    recipe: Mapping[str, Any]

    def to_json(self) -> str:
        body = {"network": self.network, "arguments": dict(self.arguments), "contract": self.contract.to_dict(), "data": self.data, "recipe": dict(self.recipe)}
        return json.dumps(body, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Card":
        body = json.loads(text)
        return cls(
            network=body["network"], arguments=body["arguments"], contract=Contract.from_dict(body["contract"]), data=body["data"], recipe=body["recipe"]
        )


def save(path: str | Path, module: nn.Module, card: Card) -> None:
    """Write the weights and the card as .safetensors, whole or not at all."""
    path = Path(path)
    staged = path.with_name(f".{path.name}.part")
    state = {key: value.detach().contiguous() for key, value in module.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, staged, metadata={KEY: card.to_json()})
        staged.chmod(0o666 & ~umask())  # safetensors writes for the owner alone
        os.replace(staged, path)  # noqa: PTH105  # atomic on one file system
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be written ({error})") from error
    finally:
        if staged.exists():
            staged.unlink()


def umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def read_card(path: str | Path) -> Card:
    """The card of a checkpoint that edgeport wrote. Raises CheckpointError if there is none."""
    path = Path(path)
    require_file(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: expected a .safetensors file written by `edgeport train`, which names its own network")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: the checkpoint is damaged or truncated ({error}); copy or train it again") from error
    if KEY not in metadata:
        raise CheckpointError(f"{path}: these weights do not say which network they belong to; expected a checkpoint written by `edgeport train`")
    try:
        return Card.from_json(metadata[KEY])
    except (ValueError, KeyError, TypeError, ContractError) as error:
        raise CheckpointError(f"{path}: the checkpoint's own description cannot be read ({error}); train it again with this version") from error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from .safetensors, or from .pt/.pth read with weights_only=True. Raises CheckpointError."""
    path = Path(path)
    require_file(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # safe_open is no dict
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: the checkpoint is damaged or truncated ({_reason(error)}); copy or train it again") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: the file holds more than tensors (a pickled object, or no checkpoint at all); save the module's state_dict() and give that"
        ) from error
    return state_of(loaded, path)


def _reason(error: Exception) -> str:
    """The first sentence of a library's error, with its kind if that is a mere number: torch's KeyError of a pickle is `101`."""
    words = str(error).split(". ")[0].splitlines()
    return words[0] if words and not words[0].isdigit() else f"{type(error).__name__}{f' {words[0]}' if words else ''}"


def state_of(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Find the tensors in what was loaded: by name, or nested under one of NESTS. Raises CheckpointError."""
    for _ in range(3):
        if not isinstance(loaded, dict):
            break
        inner = next((loaded[key] for key in NESTS if isinstance(loaded.get(key), dict)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        got = f"a dict of {', '.join(map(str, list(loaded)[:8]))}" if isinstance(loaded, dict) and loaded else type(loaded).__name__
        raise CheckpointError(f"{path}: expected tensors by name (a state_dict, perhaps under {', '.join(NESTS)}), got {got}; save the state_dict alone")
    state: dict[str, Tensor] = loaded
    return state


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, name: str | Path) -> None:
    """Load every tensor into the module, without the prefixes that wrappers leave before every name (`module.`, `_orig_mod.`, `model.`).

    A tensor that the module shares under several names may be given under one. Raises CheckpointError listing all missing,
    unexpected and mis-shaped keys at once.
    """
    wanted = module.state_dict()
    state = _without_prefixes(state, wanted)
    places = {tensor.data_ptr() for key, tensor in wanted.items() if key in state} - {0}
    missing = [key for key in wanted if key not in state and wanted[key].data_ptr() not in places]
    unexpected = [key for key in state if key not in wanted]
    shaped = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(wanted[key].shape)}" for key in wanted if key in state and state[key].shape != wanted[key].shape
    ]
    faults = [(f"{len(keys)} {kind}", keys) for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shaped)) if keys]
    if faults:
        listed = "; ".join(f"{head}: {', '.join(keys)}" for head, keys in faults)
        raise CheckpointError(
            f"{name}: these are not the weights of {type(module).__name__} as it was built ({listed}); give the checkpoint of this network, or other arguments"
        )
    module.load_state_dict(dict(state), strict=False)


def _without_prefixes(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What all names have in front goes until some fit: DataParallel's `module.`, torch.compile's `_orig_mod.`, a trainer's `model.`.

    A network may have a part called `module` itself: no prefix is removed if names fit as they are, or if none ever do.
    """
    shorter = dict(state)
    while not set(shorter) & set(wanted):
        if len({key.partition(".")[0] for key in shorter}) != 1 or not all("." in key for key in shorter):
            return state
        shorter = {key.partition(".")[2]: value for key, value in shorter.items()}
    return shorter


def require_file(path: Path) -> None:
    """Raises CheckpointError if there is no such file."""
    if path.is_dir():
        raise CheckpointError(f"{path}: expected a checkpoint, but this is a folder; name the file in it")
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a checkpoint, but there is no such file")


def sha256(path: Path) -> str:
    """Hash of a checkpoint's bytes, for the bundle's provenance."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
