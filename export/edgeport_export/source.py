"""Where a network and its images come from: a checkpoint says which network of the registry it is, and what it learnt from."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from edgeport_models import CheckpointError, DataError, load_data, network
from edgeport_models.checkpoint import load_state, read_card, read_weights, sha256
from edgeport_models.datasets import Part, folder_images
from edgeport_runtime import Contract
from edgeport_runtime.evaluate import Example


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
    module = entry.make(card.arguments if card.network == entry.name else {**entry.untrained, "num_classes": len(card.contract.labels)})
    try:
        load_state(module, read_weights(path), name=path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (this one was trained for {card.network})" if card.network != entry.name else str(error)) from error
    return Source(name=entry.name, network=module.eval(), contract=card.contract, data=card.data, checkpoint_sha256=sha256(path))


def load_examples(data: str, contract: Contract) -> tuple[Part, Part]:
    """The calibration part and the held-out part of a data set, in the contract's task.

    A folder of images without class folders calibrates a classifier too, and leaves nothing held out. Raises DataError.
    """
    pairs = contract.task == "image-to-image"
    folder = Path(data.removeprefix("folder:"))
    if data.startswith("folder:") and not pairs and folder.is_dir() and not any(path.is_dir() for path in folder.iterdir()):
        return [Example(source=path, truth=0) for path in folder_images(folder)], []
    found = load_data(data, pairs=pairs)
    if found.labels != contract.labels:
        raise DataError(
            f"{data} has the labels {', '.join(found.labels[:10])}, but the network was trained for "
            f"{', '.join(contract.labels[:10])}; name data with the same labels"
        )
    return found.calibration, found.test
