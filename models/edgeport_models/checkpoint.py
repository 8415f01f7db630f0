"""Checkpoints that edgeport writes: weights in a .safetensors file whose metadata says which network they belong to and what it was trained on."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from edgeport_runtime import Contract, ContractError

from .errors import CheckpointError
from .weights_file import require_file

KEY = "edgeport"


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


def sha256(path: Path) -> str:
    """Hash of a checkpoint's bytes, for the bundle's provenance."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
