"""Where a network and its images come from: a checkpoint says which network of the registry it is, and what it learnt from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from edgeport_models import CheckpointError, DataError, NetworkError, load_data, network
from edgeport_models.checkpoint import load_state, read_card, read_weights, sha256
from edgeport_models.datasets import Part, folder_images
from edgeport_runtime import Contract, ContractError
from edgeport_runtime.evaluate import Example

from .contracts import ImageTask, image_contract
from .imports import imported


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained network, ready to be traced. `data`: what it learnt from, as `load_data` names it."""

    name: str
    network: nn.Module
    contract: Contract
    data: str
    checkpoint_sha256: str


def load_source(checkpoint: str | Path, name: str = "") -> Source:
    """Build the network that the checkpoint was trained for; `name` says which one that must be.

    Raises NetworkError for an unknown name, CheckpointError otherwise; where the weights are another network's, it lists every key.
    """
    path = Path(checkpoint)
    entry = network(name) if name else None
    card = read_card(path)
    entry = entry or network(card.network)
    module = entry.make(card.arguments if card.network == entry.name else {**entry.untrained, "num_classes": max(1, len(card.contract.labels))})
    try:
        load_state(module, read_weights(path), name=path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (this one was trained for {card.network})" if card.network != entry.name else str(error)) from error
    return Source(name=entry.name, network=module.eval(), contract=card.contract, data=card.data, checkpoint_sha256=sha256(path))


def is_factory(name: str) -> bool:
    """True for `my.package:factory`, False for a name of the registry."""
    return ":" in name


def load_factory(target: str, checkpoint: str | Path | None, said: ImageTask | Contract | None) -> Source:
    """A network of the user's own: `my.package:factory` is called, and the checkpoint, where there is one, loaded into what it returns.

    The attribute is a function or class that needs no arguments, or a module itself; it may return (network, contract).
    `said`: a contract, or what `image_contract` makes one from. Raises NetworkError, CheckpointError, NetworkFailure, ContractError.
    """
    made = _made(target)
    module, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise NetworkError(f"{target}: expected an nn.Module (or a module and its contract), got {type(module).__name__}")
    if checkpoint is not None:
        load_state(module, read_weights(Path(checkpoint)), name=checkpoint)
    given = own if said is None else said
    if given is None:
        raise ContractError(
            f"{target}: a network of your own needs a contract: --task and --size, --contract FILE, or a factory that returns (network, contract)"
        )
    contract = given if isinstance(given, Contract) else image_contract(module, given)
    digest = sha256(Path(checkpoint)) if checkpoint is not None else ""
    return Source(name=target.partition(":")[2].rpartition(".")[2], network=module.eval(), contract=contract, data="", checkpoint_sha256=digest)


def _made(target: str) -> Any:
    try:
        found = imported(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise NetworkError(f"{target}: cannot be imported ({error}); expected my.package:factory, seen from the current folder") from error
    if isinstance(found, nn.Module) or not callable(found):
        return found
    try:
        return found()
    except Exception as error:  # the user's own code
        raise NetworkError(f"{target}: calling it without arguments failed ({type(error).__name__}: {error})") from error


def load_examples(data: str, contract: Contract) -> tuple[Part, Part]:
    """The calibration part and the held-out part of a data set, in the contract's task.

    A folder of images without class folders calibrates a classifier too, and leaves nothing held out. Raises DataError.
    """
    pairs = contract.task == "image-to-image"
    folder = Path(data.removeprefix("folder:"))
    if data.startswith("folder:") and not pairs and folder.is_dir() and not any(path.is_dir() for path in folder.iterdir()):
        return [Example(source=path, truth=0) for path in folder_images(folder)], []
    found = load_data(data, pairs=pairs)
    if not contract.labels and found.labels:
        raise DataError(
            f"{data} has the labels {', '.join(found.labels[:10])}, but the contract has none: name them with --labels FILE, in the order of the logits"
        )
    if found.labels != contract.labels:
        raise DataError(
            f"{data} has the labels {', '.join(found.labels[:10])}, but the network was trained for "
            f"{', '.join(contract.labels[:10])}; name data with the same labels"
        )
    return found.calibration, found.test
