"""A trained network and its images, by name: a checkpoint names its network and its data; a factory is the user's own code."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from edgeport_models import CheckpointError, DataError, NetworkError, load_data, network
from edgeport_models.checkpoint import read_card, sha256
from edgeport_models.datasets import DATA_SETS, LEARNT_FROM, Part
from edgeport_models.detectors import DetectorHeads, is_torchvision_detector
from edgeport_models.weights import LoadedWeights, load_checkpoint
from edgeport_runtime import Bundle, BundleError, Contract, ContractError, Example, InputError
from edgeport_runtime.coco import ANNOTATIONS
from edgeport_runtime.evaluation import folder_examples
from edgeport_runtime.images import image_files
from edgeport_runtime.tasks import find_task

from .import_string import imported
from .model_libraries import detector_task, is_library_name, library_model
from .network.contracts import ImageTask, image_contract

RANDOM = "random, as --random-weights asked"


@dataclass(frozen=True, kw_only=True)
class NetworkSource:
    """A trained network, ready to be traced.

    `own`: what it promises itself, a contract or a description, if `contract` may be another one. `data`: its training data, as `load_data` names it.
    `checkpoint_sha256`: of its file. `weights`: which of the file's tensors. None if unknown.
    """

    name: str
    network: nn.Module
    contract: Contract
    own: Contract | ImageTask | None = None
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
    given: ImageTask | Contract | Callable[[ImageTask], ImageTask] | None,
    *,
    weights_key: str | None = None,
    strip_prefix: str | None = None,
    classes: int | None = None,
    random_weights: bool = False,
) -> NetworkSource:
    """A network of the user's own: `my.package:factory` is called, and the checkpoint, if there is one, loaded into the network that it returns.

    The attribute is a function or class that needs no arguments, or a module itself; it may return (network, contract or description).
    `timm:NAME` and `torchvision:NAME` are networks of these libraries, with `classes` in their head. Their weights are the checkpoint's, or
    downloaded, or random if that is asked for.
    `given`: a contract, a description that `image_contract` makes one from, or a function that changes the library's description.
    `weights_key`, `strip_prefix`: where in the checkpoint the weights are, if they are not to be found by the rule.
    Raises NetworkError, CheckpointError, NetworkFailure, ContractError.
    """
    module, own, weights = load_network(factory, checkpoint, weights_key=weights_key, strip_prefix=strip_prefix, classes=classes, random_weights=random_weights)
    described: Any = own if given is None else given(cast(ImageTask, own)) if callable(given) else given
    if described is None:
        raise ContractError(
            f"{factory}: a network of your own needs a contract: --task and --size, --contract FILE, or a factory that returns (network, contract)"
        )
    contract = described if isinstance(described, Contract) else image_contract(module, described)
    digest = sha256(Path(checkpoint)) if checkpoint is not None and Path(checkpoint).is_file() else None  # a folder of shards has no hash
    name = factory.partition(":")[2] if is_library_name(factory) else factory.partition(":")[2].rpartition(".")[2]
    promised = own if isinstance(own, Contract | ImageTask) and not is_library_name(factory) else None  # a library's is often used at other sizes
    return NetworkSource(name=name, network=module.eval(), contract=contract, own=promised, checkpoint_sha256=digest, weights=weights)


def load_network(
    factory: str,
    checkpoint: str | Path | None,
    *,
    weights_key: str | None = None,
    strip_prefix: str | None = None,
    classes: int | None = None,
    random_weights: bool = False,
) -> tuple[nn.Module, Any, LoadedWeights | None]:
    """The network alone, the contract or description that its factory gave with it (None if none), and which of the file's tensors were loaded.

    Parameters and errors as of `load_factory`.
    """
    library = is_library_name(factory)
    if not library and random_weights:
        raise NetworkError(f"{factory}: --random-weights is for timm:NAME and torchvision:NAME; a factory makes its own")
    made: Any = library_model(factory, classes=classes, download=checkpoint is None and not random_weights) if library else _made(factory)
    module, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise NetworkError(f"{factory}: expected an nn.Module (or a module and its contract), got {type(module).__name__}")
    if checkpoint is None and (weights_key is not None or strip_prefix is not None):
        raise CheckpointError("--weights-key and --strip-prefix say where in a checkpoint the weights are: name the file with --checkpoint")
    weights = None if checkpoint is None else load_checkpoint(module, checkpoint, weights_key=weights_key, strip_prefix=strip_prefix)
    if is_torchvision_detector(module):
        return DetectorHeads(module.eval()).eval(), detector_task(module) if own is None else own, weights
    return module.eval(), own, weights


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


def source_of_bundle(bundle: Bundle, checkpoint: str | Path | None, factory: str | None, *, same_contract: bool = True) -> NetworkSource:
    """The network that a bundle was made from, under the bundle's own contract; `own` is what the network promises itself.

    `same_contract`: whether the checkpoint's must be the bundle's but for axes. Raises InputError if the network is not named, BundleError.
    """
    contract = bundle.manifest.contract
    if factory is not None:
        origin = bundle.manifest.provenance
        taken = origin.get("weights_key") if checkpoint is not None else None
        axis = find_task(contract.task).classes_axis
        classes = contract.outputs[0].shape[axis] if axis is not None else None
        random_weights = checkpoint is None and is_library_name(factory) and origin.get("weights") == RANDOM
        number = classes if isinstance(classes, int) else None
        return load_factory(factory, checkpoint, contract, strip_prefix=taken, classes=number, random_weights=random_weights)
    if checkpoint is None:
        made_from = bundle.manifest.provenance.get("model", "")
        named = f", and the network with --model {made_from}" if is_factory(made_from) else "; a network of your own is named with --model my.package:factory"
        raise InputError(f"name the weights with --checkpoint{named}")
    try:
        source = load_source(checkpoint)
    except CheckpointError as error:
        if "edgeport train" in str(error):
            raise CheckpointError(f"{error}; a network of your own is named with --model my.package:factory") from error
        raise
    if same_contract and not _differ_in_axes_alone(source.contract, contract):
        raise BundleError(f"{bundle.folder}: this bundle was made for another contract than the checkpoint's; export the checkpoint again")
    return replace(source, contract=contract, own=source.contract)


def _differ_in_axes_alone(first: Contract, second: Contract) -> bool:
    """Whether two contracts differ in nothing but their dynamic axes, which `--dynamic` may have changed."""
    return (first.task, first.labels, first.inputs[0].pixels) == (second.task, second.labels, second.inputs[0].pixels)


def load_examples(data: str, contract: Contract) -> tuple[Part, Part]:
    """The calibration part and the held-out part of the data that a network of edgeport's learned from.

    The parts are those that training left out, so a folder gives one image in ten to each. A folder that training cannot have used (images without
    class folders or annotations, pairs in `input` and `target`) is taken as `own_examples` takes it. Raises DataError.
    """
    folder, truth = data_folder(data), find_task(contract.task).truth
    if folder is not None and folder.is_dir() and (truth == "mask" or holds_truths(folder, contract) == (truth == "image")):
        return own_examples(data, None, contract)
    found = load_data(data, truth=find_task(contract.task).truth or "label")
    _require_labels(data, found.labels, contract)
    if found.labels != contract.labels:  # an example's truth is the place of its label among those of the data
        raise _other_labels(data, found.labels, contract)
    return found.calibration, found.test


def own_examples(calibration: str | None, held_out: str | None, contract: Contract) -> tuple[Part, Part]:
    """Calibration images and held-out examples for a network of the user's own. Nothing is added to an image, and no truth is invented.

    Each is a folder, or a data set's name. A folder that holds truths (class folders, annotations, or `input` and `target`) is halved by the hashes
    of its files' names if no other one is held out: one half calibrates, the other judges. Raises DataError, InputError.
    """
    if held_out is not None:
        judged = _with_truth(held_out, contract)
        return ([] if calibration is None else _images(calibration)), judged
    if calibration is None:
        return [], []
    folder = data_folder(calibration)
    if folder is None:
        return _named(calibration, contract)
    if not holds_truths(folder, contract):
        return _images(calibration), []
    examples = _with_truth(calibration, contract)
    judges = {index for index, each in enumerate(examples) if hashlib.sha256(Path(str(each.source)).name.encode()).digest()[0] % 2}
    return [each for index, each in enumerate(examples) if index not in judges], [each for index, each in enumerate(examples) if index in judges]


def data_folder(data: str) -> Path | None:
    """The folder that `folder:PATH` or PATH names; None for the name of a data set."""
    if data == "folder:":
        raise DataError("folder: names no folder; expected folder:PATH, or PATH alone")
    if data.startswith("folder:"):
        return Path(data.removeprefix("folder:"))
    return None if data in DATA_SETS and not Path(data).is_dir() else Path(data)


def _images(data: str) -> Part:
    """Images alone, from a folder and the folders in it, or from a data set."""
    folder = data_folder(data)
    if folder is not None:
        try:
            return [Example(source=path) for path in image_files(folder, nested=True)]
        except InputError as error:
            raise DataError(str(error)) from error
    found = load_data(data, truth=LEARNT_FROM[data][0] if data in LEARNT_FROM else "label")
    return [Example(source=each.truth if data == "photos" else each.source) for each in (*found.calibration, *found.test)]


def _named(data: str, contract: Contract) -> tuple[Part, Part]:
    """A named data set: with its truths if they are the task's, else its images alone. Photos are taken without their noise."""
    truth = find_task(contract.task).truth
    if truth == "image" or truth not in LEARNT_FROM.get(data, ("label",)):
        return _images(data), []
    return load_examples(data, contract)


def holds_truths(folder: Path, contract: Contract) -> bool:
    """Whether the folder is laid out as one with truths for this task."""
    truth = find_task(contract.task).truth
    if truth is None or not folder.is_dir():
        return False
    if truth == "label":
        return any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())
    if truth == "boxes":
        return (folder / ANNOTATIONS).is_file()
    return (folder / "input").is_dir() and (folder / "target").is_dir()


def _with_truth(data: str, contract: Contract) -> list[Example]:
    folder = data_folder(data)
    if folder is None:
        return list(_named(data, contract)[1])
    if find_task(contract.task).truth is None:
        raise DataError(f"{data}: a folder holds no truths for the task {contract.task!r}; in Python, give export_bundle held_out=[(image, truth), ...]")
    if find_task(contract.task).truth == "label" and folder.is_dir():
        _require_labels(data, tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))), contract)
    return folder_examples(contract, folder)


def _require_labels(data: str, labels: tuple[str, ...], contract: Contract) -> None:
    """Raises DataError for labels that are not the contract's. A folder may lack some."""
    if not contract.labels and labels:
        raise DataError(f"{data} has the labels {', '.join(labels[:10])}, but the contract has none: name them with --labels FILE, in the order of the logits")
    if not set(labels) <= set(contract.labels):
        raise _other_labels(data, labels, contract)


def _other_labels(data: str, labels: tuple[str, ...], contract: Contract) -> DataError:
    return DataError(
        f"{data} has the labels {', '.join(labels[:10])}, but the network was trained for {', '.join(contract.labels[:10])}; name data with the same labels"
    )
