"""Training, small and seeded: SGD for classifiers, AdamW for detectors and segmentations, adversarial + L1 for the generator."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeport_runtime import Contract, Example
from edgeport_runtime.average_precision import TrueBoxes
from edgeport_runtime.decoding import ImageSource, size_px
from edgeport_runtime.framing import Framing
from edgeport_runtime.images import prepare, prepare_mask, require_size, stack
from edgeport_runtime.tasks import find_task

from .datasets import Part
from .errors import DataError, TrainingError
from .generator import PatchDiscriminator
from .losses import detection_loss, segmentation_loss
from .registry import Recipe

ADVERSARIAL_SHARE = 0.001  # of the generator's loss; the rest is L1 in the range -1..1
MOST_ROTATION_RAD, MOST_ZOOM, MOST_SHIFT = 0.26, 0.15, 0.15  # of the random views; shift in half image sides
Step = Callable[[str], None]


def train(module: nn.Module, contract: Contract, part: Part, recipe: Recipe, step: Step = lambda text: None) -> None:
    """Train in place and leave the module in eval mode. `step` is called with a line on the loss after every batch.

    Repeatable on one machine with one number of threads: everything random comes from `recipe.seed`. Raises DataError, ImageError.
    """
    if len(part) < 2:
        raise DataError(f"expected at least 2 images to learn from, got {len(part)}")
    generator = torch.Generator().manual_seed(recipe.seed)
    learners = {"label": _classify, "image": _adversarial, "boxes": _detect, "mask": _segment}
    learn = learners[find_task(contract.task).truth or "label"]
    module.to(memory_format=torch.channels_last)
    module.train()
    learn(module, contract, part, recipe, generator, step)
    module.eval().to(memory_format=torch.contiguous_format)


def steps(part: Part, recipe: Recipe) -> int:
    """How many batches a training takes."""
    return recipe.epochs * len(_starts(len(part), recipe.batch))


def _starts(count: int, batch: int) -> list[int]:
    """Where each batch begins; a last batch of one image would leave BatchNorm without a variance, so it is dropped."""
    return [start for start in range(0, count, batch) if count - start > 1]


def normalize(pixels: Tensor, contract: Contract) -> Tensor:
    """uint8 (B, H, W, C) -> float32 (B, C, H, W): (pixel / 255 - mean) / std."""
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in (contract.pixels.mean, contract.pixels.std))
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def _pixels(examples: list[Example], contract: Contract) -> Tensor:
    arrays = [prepare(example.source, contract.pixels) for example in examples]
    require_size(arrays[0].shape, contract, "the first image")
    return torch.from_numpy(stack(arrays))


def _batches(part: Part, contract: Contract, recipe: Recipe, generator: torch.Generator) -> Iterator[tuple[Tensor, list[Example]]]:
    """Every epoch in another order: network input (B, C, H, W) and its examples."""
    for _ in range(recipe.epochs):
        order = torch.randperm(len(part), generator=generator).tolist()
        for start in _starts(len(part), recipe.batch):
            examples = [part[index] for index in order[start : start + recipe.batch]]
            yield normalize(_pixels(examples, contract), contract), examples


def _image(example: Example) -> ImageSource:
    """The image that a generator should make. Raises DataError if the example holds another truth."""
    if example.truth is None or isinstance(example.truth, int):
        raise DataError(f"a generator learns from pairs of images, but this example has {'no truth' if example.truth is None else 'a label'}")
    return example.truth


def random_views(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, zoom and shift each image a little, so that other people's handwriting is met halfway. (B, C, H, W) -> same."""
    uniform = torch.rand((4, len(x)), generator=generator) * 2 - 1  # (4, B) in -1..1
    angle, zoom, shift = uniform[0] * MOST_ROTATION_RAD, 1 + uniform[1] * MOST_ZOOM, uniform[2:] * MOST_SHIFT
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    matrix = torch.stack([torch.stack([cosine, -sine, shift[0]], 1), torch.stack([sine, cosine, shift[1]], 1)], 1)  # (B, 2, 3)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _finite(loss: Tensor) -> float:
    """The loss as a number. Raises TrainingError if it is none, before the weights become NaN."""
    value = float(loss.item())
    if not math.isfinite(value):
        raise TrainingError(f"the loss became {value}: the training diverged; lower the learning rate")
    return value


def _classify(module: nn.Module, contract: Contract, part: Part, recipe: Recipe, generator: torch.Generator, step: Step) -> None:
    learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learnt, recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps(part, recipe), pct_start=0.2)
    for x, examples in _batches(part, contract, recipe, generator):
        truth = torch.tensor([example.truth for example in examples])
        loss = F.cross_entropy(module(random_views(x, generator).contiguous(memory_format=torch.channels_last)), truth)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        step(f"loss {_finite(loss):.4f}")


def _adversarial(module: nn.Module, contract: Contract, part: Part, recipe: Recipe, generator: torch.Generator, step: Step) -> None:
    torch.manual_seed(recipe.seed)
    judge = PatchDiscriminator().to(memory_format=torch.channels_last)
    makers = [torch.optim.Adam(module.parameters(), recipe.learning_rate), torch.optim.Adam(judge.parameters(), recipe.learning_rate / 4, betas=(0.5, 0.999))]
    schedule = torch.optim.lr_scheduler.OneCycleLR(makers[0], recipe.learning_rate, total_steps=steps(part, recipe), pct_start=0.1)
    for x, examples in _batches(part, contract, recipe, generator):
        given = x.contiguous(memory_format=torch.channels_last)
        wanted = normalize(torch.from_numpy(np.stack([prepare(_image(example), contract.pixels) for example in examples])), contract)
        made = module(given)
        real, fake = judge(given, wanted), judge(given, made.detach())
        judged = F.binary_cross_entropy_with_logits(real, torch.ones_like(real)) + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
        makers[1].zero_grad()
        judged.backward()  # type: ignore[no-untyped-call]
        makers[1].step()
        fooled = judge(given, made)
        distance = F.l1_loss(made, wanted)
        loss = distance + ADVERSARIAL_SHARE * F.binary_cross_entropy_with_logits(fooled, torch.ones_like(fooled))
        makers[0].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        makers[0].step()
        schedule.step()
        step(f"L1 {_finite(distance):.4f}, judge {judged.item():.3f}")


def _detect(module: nn.Module, contract: Contract, part: Part, recipe: Recipe, generator: torch.Generator, step: Step) -> None:
    def loss_of(outputs: Any, examples: list[Example]) -> Tensor:
        return detection_loss(outputs, [seen_boxes(example, contract) for example in examples], int(module.STRIDE_PX))  # type: ignore[arg-type]

    _with_adamw(module, _batches(part, contract, recipe, generator), loss_of, steps(part, recipe), recipe, step)


def seen_boxes(example: Example, contract: Contract) -> TrueBoxes:
    """True boxes as the network sees them: in pixels of its input."""
    true = TrueBoxes.of(example.truth, "an example")
    pixels = contract.pixels
    return true._replace(boxes=Framing.of(size_px(example.source), pixels, (pixels.height, pixels.width)).to_network(true.boxes))


def _segment(module: nn.Module, contract: Contract, part: Part, recipe: Recipe, generator: torch.Generator, step: Step) -> None:
    def loss_of(scores: Any, examples: list[Example]) -> Tensor:
        masks = [prepare_mask(example.truth, contract.pixels, scores.shape[2:]) for example in examples]
        return segmentation_loss(scores, torch.from_numpy(np.stack(masks)))

    _with_adamw(module, _batches(part, contract, recipe, generator), loss_of, steps(part, recipe), recipe, step)


def _with_adamw(
    module: nn.Module,
    batches: Iterator[tuple[Tensor, list[Example]]],
    loss_of: Callable[[Any, list[Example]], Tensor],
    total: int,
    recipe: Recipe,
    step: Step,
) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=total, pct_start=0.2)
    for x, examples in batches:
        loss = loss_of(module(x.contiguous(memory_format=torch.channels_last)), examples)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        step(f"loss {_finite(loss):.4f}")
