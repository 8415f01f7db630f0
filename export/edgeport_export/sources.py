"""A trained network and its images, by name: a checkpoint names its network and its data; a factory is the user's own code."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from edgeport_models import CheckpointError, DataError, NetworkError, load_data, network
from edgeport_models.checkpoint import read_card, sha256
from edgeport_models.datasets import Part, folder_images
from edgeport_models.weights import LoadedWeights, load_checkpoint
from edgeport_runtime import Bundle, BundleError, Contract, ContractError, Example, InputError
from edgeport_runtime.tasks import find_task

from .import_string import imported
from .network.contracts import ImageTask, image_contract


@dataclass(frozen=True, kw_only=True)
class NetworkSource:
    """A trained network, ready to be traced.

    `data`: its training data, as `load_data` names it. `checkpoint_sha256`: of its file. `weights`: which of the file's tensors. None if unknown.
    """

    name: str
    network: nn.Module
    contract: Contract
    data: str | None = None
    checkpoint_sha256: str | None = None
    weights: LoadedWeights | None = None


def load_source(checkpoint: str | Path, name: str | None = None) -> NetworkSource:
    """Build the network that the checkpoint was trained for; `name`: the network that it must be.

    Raises NetworkError for an unknown name, CheckpointError otherwise; if the weights are another network's, it lists keys.
    """
    path = Path(checkpoint)
    entry = None if name is None else network(name)
    card = read_card(path)
    entry = entry or network(card.network)
    module = entry.make(card.arguments if card.network == entry.name else {**entry.untrained, "num_classes": max(1, len(card.contract.labels))})
    try:
        load_checkpoint(module, path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (this one was trained for {card.network})" if card.network != entry.name else str(error)) from error
    return NetworkSource(name=entry.name, network=module.eval(), contract=card.contract, data=card.data, checkpoint_sha256=sha256(path))


def is_factory(name: str) -> bool:
    """True for `my.package:factory`, False for a name of the registry."""
    return ":" in name


def load_factory(
    factory: str,
    checkpoint: str | Path | None,
    given: ImageTask | Contract | None,
    *,
    weights_key: str | None = None,
    strip_prefix: str | None = None,
) -> NetworkSource:
    """A network of the user's own: `my.package:factory` is called, and the checkpoint, if there is one, loaded into the network that it returns.

    The attribute is a function or class that needs no arguments, or a module itself; it may return (network, contract).
    `given`: a contract, or a description that `image_contract` makes one from. `weights_key`, `strip_prefix`: where in the checkpoint the weights
    are, if they are not to be found by the rule. Raises NetworkError, CheckpointError, NetworkFailure, ContractError.
    """
    made = _made(factory)
    module, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise NetworkError(f"{factory}: expected an nn.Module (or a module and its contract), got {type(module).__name__}")
    if checkpoint is None and (weights_key is not None or strip_prefix is not None):
        raise CheckpointError("--weights-key and --strip-prefix say where in a checkpoint the weights are: name the file with --checkpoint")
    weights = None if checkpoint is None else load_checkpoint(module, checkpoint, weights_key=weights_key, strip_prefix=strip_prefix)
    described = own if given is None else given
    if described is None:
        raise ContractError(
            f"{factory}: a network of your own needs a contract: --task and --size, --contract FILE, or a factory that returns (network, contract)"
        )
    contract = described if isinstance(described, Contract) else image_contract(module, described)
    digest = sha256(Path(checkpoint)) if checkpoint is not None and Path(checkpoint).is_file() else None  # a folder of shards has no hash
    name = factory.partition(":")[2].rpartition(".")[2]
    return NetworkSource(name=name, network=module.eval(), contract=contract, checkpoint_sha256=digest, weights=weights)


def _made(factory: str) -> Any:
    try:
        found = imported(factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise NetworkError(f"{factory}: cannot be imported ({error}); expected my.package:factory, seen from the current folder") from error
    if isinstance(found, nn.Module) or not callable(found):
        return found
    try:
        return found()
    except Exception as error:  # the user's own code
        raise NetworkError(f"{factory}: calling it without arguments failed ({type(error).__name__}: {error})") from error


def source_of_bundle(bundle: Bundle, checkpoint: str | Path | None, factory: str | None) -> NetworkSource:
    """The network that a bundle was made from, under the bundle's own contract. Raises InputError if it is not named, BundleError if it has another one."""
    contract = bundle.manifest.contract
    if factory is not None:
        taken = bundle.manifest.provenance.get("weights_key") if checkpoint is not None else None
        return load_factory(factory, checkpoint, contract, strip_prefix=taken)
    if checkpoint is None:
        made_from = bundle.manifest.provenance.get("model", "")
        raise InputError(f"name the weights with --checkpoint{f', and the network with --model {made_from}' if is_factory(made_from) else ''}")
    source = load_source(checkpoint)
    if not _differ_in_axes_alone(source.contract, contract):
        raise BundleError(f"{bundle.folder}: this bundle was made for another contract than the checkpoint's; export the checkpoint again")
    return replace(source, contract=contract)


def _differ_in_axes_alone(first: Contract, second: Contract) -> bool:
    """Whether two contracts differ in nothing but their dynamic axes, which `--dynamic` may have changed."""
    return (first.task, first.labels, first.inputs[0].pixels) == (second.task, second.labels, second.inputs[0].pixels)


def load_examples(data: str, contract: Contract) -> tuple[Part, Part]:
    """The calibration part and the held-out part of a data set, in the contract's task.

    A folder of images without class folders calibrates a classifier too, and leaves nothing held out. Raises DataError.
    """
    pairs = find_task(contract.task).truth_is_image
    folder = Path(data.removeprefix("folder:"))
    if data.startswith("folder:") and not pairs and folder.is_dir() and not any(path.is_dir() for path in folder.iterdir()):
        return [Example(source=path) for path in folder_images(folder)], []
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
