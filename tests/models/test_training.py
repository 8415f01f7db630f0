from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from edgeport_models import DataError, network, train
from edgeport_models.training import normalize, random_views, seen_boxes, steps
from edgeport_runtime import Example
from edgeport_runtime.detector import detect

CNN = network("cnn")
CONTRACT = CNN.contract(("dark", "bright"), 16)
RECIPE = replace(CNN.recipe, epochs=4, batch=8, learning_rate=0.02)


def brightness(count: int) -> list[Example]:
    generator = np.random.default_rng(0)
    return [Example(source=np.clip(generator.normal(60 + 130 * (i % 2), 20, (16, 16, 3)), 0, 255).astype(np.uint8), truth=i % 2) for i in range(count)]


def trained(seed: int) -> tuple[torch.nn.Module, list[str]]:
    torch.manual_seed(0)
    module, lines = CNN.make({"num_classes": 2}), []
    train(module, CONTRACT, brightness(33), replace(RECIPE, seed=seed), lines.append)
    return module, lines


def test_a_classifier_learns_and_the_seed_repeats_it() -> None:
    (first, lines), (again, _), (other, _) = trained(1), trained(1), trained(2)
    assert not first.training and len(lines) == steps(brightness(33), RECIPE) == 4 * 4  # 33 images: the last batch of one is dropped
    assert float(lines[-1].split()[1]) < 0.2 < float(lines[0].split()[1])
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_a_generator_gets_nearer_to_its_target() -> None:
    entry = network("generator")
    generator = np.random.default_rng(0)
    squares = [np.full((16, 16, 3), generator.integers(60, 200), np.uint8) for _ in range(32)]
    part = [Example(source=np.clip(square + generator.normal(0, 25, square.shape), 0, 255).astype(np.uint8), truth=square) for square in squares]
    torch.manual_seed(0)
    module, lines = entry.make({}), []
    train(module, entry.contract((), 16), part, replace(entry.recipe, epochs=8, batch=8), lines.append)
    distances = [float(line.split()[1].rstrip(",")) for line in lines]
    assert np.mean(distances[-4:]) < 0.6 * distances[0]
    with pytest.raises(DataError, match="this example has a label"):
        train(module, entry.contract((), 16), brightness(8), entry.recipe)


def squares(count: int, side: int = 32) -> list[Example]:
    """A light square on the left or a dark one on the right, on gray; with its box and class."""
    found = []
    for index in range(count):
        image, left = np.full((side, side, 3), 128, np.uint8), 4 + 12 * (index % 2)
        image[8:20, left : left + 12] = (230, 20)[index % 2]
        found.append(Example(source=image, truth=([[left, 8, left + 12, 20]], [index % 2])))
    return found


def test_a_detector_learns_where_and_what() -> None:
    entry = network("detector")
    contract = entry.contract(("light", "dark"), 32)
    torch.manual_seed(0)
    module, lines = entry.make({"num_classes": 2, "channels": 16}), []
    train(module, contract, squares(32), replace(entry.recipe, epochs=30, batch=8), lines.append)
    assert float(lines[-1].split()[1]) < 0.2 * float(lines[0].split()[1])
    light, dark = squares(2)
    with torch.inference_mode():
        outputs = {name: each.numpy() for name, each in module(normalize(torch.from_numpy(np.stack([light.source, dark.source])), contract)).items()}
    for found, example in zip(detect(outputs, contract.detection, (32, 32)), (light, dark), strict=True):  # type: ignore[arg-type]
        assert found.classes[0] == example.truth[1][0]
        np.testing.assert_allclose(found.boxes[0], example.truth[0][0], atol=3)


def test_boxes_are_learnt_where_the_network_sees_them() -> None:
    """A photograph of 64x128 fills the middle half of a square of 32: a quarter of the size, 8 rows down."""
    contract = network("detector").contract(("a",), 32)
    example = Example(source=np.zeros((64, 128, 3), np.uint8), truth=([[0, 0, 128, 64], [40, 20, 80, 60]], [0, 0]))
    assert seen_boxes(example, contract).boxes.tolist() == [[0, 8, 32, 24], [10, 13, 20, 23]]


def test_a_segmentation_learns_its_classes() -> None:
    entry = network("segmenter")
    contract = entry.contract(("ground", "square"), 32)
    part = [Example(source=each.source, truth=(np.asarray(each.source)[:, :, 0] != 128).astype(np.uint8)) for each in squares(32)]
    torch.manual_seed(0)
    module, lines = entry.make({"num_classes": 2, "channels": 16}), []
    train(module, contract, part, replace(entry.recipe, epochs=20, batch=8), lines.append)
    with torch.inference_mode():
        answered = module(normalize(torch.from_numpy(np.stack([each.source for each in part])), contract)).argmax(dim=1).numpy()
    assert (answered == np.stack([each.truth for each in part])).mean() > 0.97


def test_normalize_is_torchvisions() -> None:
    contract = network("resnet18").contract(("a", "b"), 64)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    reference = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(contract.pixels.mean, contract.pixels.std)])
    expected = torch.stack([reference(image) for image in pixels])
    torch.testing.assert_close(normalize(torch.from_numpy(pixels), contract), expected, atol=1e-6, rtol=0)


def test_random_views_keep_shape_and_range_and_follow_the_seed() -> None:
    x = torch.rand(4, 3, 12, 10)
    one, same, other = (random_views(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert one.shape == x.shape and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, same) and not torch.equal(one, other) and not torch.equal(one, x)


def test_too_few_images() -> None:
    with pytest.raises(DataError, match="at least 2 images to learn from, got 1"):
        train(CNN.make({"num_classes": 2}), CONTRACT, brightness(1), RECIPE)
