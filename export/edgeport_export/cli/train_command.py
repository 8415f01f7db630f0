"""`edgeport train`: from names to a checkpoint. The demo does the same."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from edgeport_export.errors import OutputError
from edgeport_export.network.reference import TorchReference
from edgeport_export.progress import ProgressCallback
from edgeport_models import Card, load_data, network, train
from edgeport_models.checkpoint import save
from edgeport_models.training import steps
from edgeport_runtime import InputError, Quality
from edgeport_runtime.evaluation import measure
from edgeport_runtime.images import prepare


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A network, and the place for its checkpoint. `data`, `size_px` (height and width, which are equal): the network's own if None. `changes`: to the recipe.

    `arguments`: for the network's constructor.
    """

    name: str
    out: Path
    data: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    size_px: tuple[int, int] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    force: bool = False


def run_training(job: TrainingJob, progress: ProgressCallback) -> Quality | None:
    """Train, write the checkpoint, and return the quality on the held-out part; None if that part is empty.

    Raises InputError for arguments the network does not take, OutputError if the file exists, DataError, NetworkError.
    """
    entry = network(job.name)
    recipe = replace(entry.recipe, **job.changes)
    unknown = sorted(set(job.arguments) - entry.parameters)
    if unknown:
        raise InputError(f"{job.name} takes no {' or '.join('--' + name for name in unknown)}; leave it out")
    if recipe.epochs < 1 or recipe.batch < 2 or not recipe.learning_rate > 0:
        raise InputError("expected at least 1 epoch, a batch of at least 2 and a learning rate above 0")
    if job.size_px is not None and job.size_px[0] != job.size_px[1]:
        raise InputError(f"{job.name} is trained on squares, got --size {job.size_px[0]}x{job.size_px[1]}; dynamic sides come with the export (--dynamic)")
    if not 0 <= recipe.seed < 2**63:
        raise InputError(f"expected a seed from 0 to 2^63, got {recipe.seed}")
    if job.out.suffix != ".safetensors":
        raise OutputError(f"{job.out}: checkpoints are written as .safetensors; give a file name with that ending")
    if job.out.exists() and not job.force:
        raise OutputError(f"{job.out} exists already; give another file with --out, or replace it with --force")
    data = load_data(recipe.data if job.data is None else job.data, truth=entry.truth)
    contract = entry.contract(data.labels, entry.side_px if job.size_px is None else job.size_px[0])
    for example in data.test:  # a broken image should be reported now, not after the training
        prepare(example.source, contract.pixels)
    torch.manual_seed(recipe.seed)
    arguments = dict(job.arguments) | ({"num_classes": len(data.labels)} if entry.has_classes else {})
    module = entry.make(arguments)
    total, done = steps(data.train, recipe), iter(range(1, 1 << 62))
    train(module, contract, data.train, recipe, lambda text: progress("batches", next(done), total, text))
    card = Card(network=entry.name, arguments={**arguments, **entry.untrained}, contract=contract, data=data.name, recipe=asdict(recipe))
    quality = measure(contract, TorchReference(module, contract).pixels, data.test) if data.test else None
    save(job.out, module, card)
    return quality
