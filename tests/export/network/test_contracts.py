import contextlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import MobileNet_V2_Weights, ResNet50_Weights
from torchvision.models.segmentation import FCN_ResNet50_Weights
from torchvision.transforms import functional as TF

from edgeport_export import ExportError, NetworkFailure
from edgeport_export.network.contracts import ImageTask, image_contract, parse_axes, pixels_of_weights, require_classes, with_axes
from edgeport_export.network.preflight import preflight
from edgeport_models import network
from edgeport_runtime import Contract, ContractError, Input, Output, Pixels, Range
from edgeport_runtime.images import prepare
from edgeport_runtime.tasks import TaskName

PIXELS = Pixels(height=12, width=16, mean=(0.5,) * 3, std=(0.5,) * 3)


class Head(nn.Module):
    def __init__(self, answer) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor):  # type: ignore[no-untyped-def]
        return self.answer(x)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch", {"batch": Range(low=1, high=64)}),
        ("batch=1..8, height=32..512:32,width", {"batch": Range(low=1, high=8), "height": Range(low=32, high=512, step=32), "width": Range(low=32, high=1024)}),
        ("", {}),
    ],
)
def test_axes_are_read(text: str, expected: dict[str, Range]) -> None:
    assert parse_axes(text) == expected


@pytest.mark.parametrize("text", ["batch=4", "batch=a..b", "batch=1..", "height=1..8:x", "batch=-1..4"])
def test_axes_that_are_none(text: str) -> None:
    with pytest.raises(ContractError, match="expected an axis as name=low"):
        parse_axes(text)


@pytest.mark.parametrize("text", ["batch=64..1", "height=0..8", "width=8..16:0"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(ContractError, match=rf"'{text}': expected low\.\.high:step with 1 <= low <= high"):
        parse_axes(text)


def test_steps_and_nearest() -> None:
    sides = Range(low=32, high=100, step=32)
    assert [size for size in range(130) if size in sides] == [32, 64, 96]
    assert [sides.nearest(size) for size in (1, 47, 49, 96, 1000)] == [32, 32, 64, 96, 96]


def test_outputs_are_described_by_one_run() -> None:
    axes = {"batch": Range(low=1, high=8), "height": Range(low=4, high=64), "width": Range(low=4, high=64)}
    contract = image_contract(Head(lambda x: x.mean((2, 3))), ImageTask(task="classification", pixels=PIXELS, axes=axes, labels=tuple("abc")))
    assert contract.inputs[0].shape == ("batch", "height", "width", 3)
    assert [(each.name, each.shape, each.kind) for each in contract.outputs] == [("logits", ("batch", 3), "logits")]
    several = image_contract(Head(lambda x: (x, [x.mean((1, 2, 3))])), ImageTask(task="tensors", pixels=PIXELS, axes=axes))
    assert [(each.name, each.shape) for each in several.outputs] == [("output_0", ("batch", 3, "height", "width")), ("output_1", ("batch",))]
    image = image_contract(Head(torch.sigmoid), ImageTask(task="image-to-image", pixels=PIXELS, axes={"batch": axes["batch"]}))
    first = image.outputs[0]
    assert (first.name, first.dtype, first.shape, first.range) == ("image", "uint8", ("batch", 12, 16, 3), (0.0, 1.0))
    embedding = image_contract(Head(lambda x: x.mean((2, 3))), ImageTask(task="embedding", pixels=PIXELS, axes={}))
    assert embedding.inputs[0].shape == (1, 12, 16, 3) and embedding.outputs[0].shape == (1, 3)


class Answer(nn.Module):
    """A map, a sequence of positions, a map of classes, and anchors that no image changes."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor | None]:
        return {"pixels": x[:, :, ::2], "sequence": x.flatten(2), "classes": x.argmax(1), "anchors": torch.zeros(1, 20), "auxiliary": None}


def test_each_axis_of_an_output_is_named_by_what_moves_it() -> None:
    axes = {"batch": Range(low=1, high=8), "height": Range(low=4, high=64), "width": Range(low=4, high=64)}
    contract = image_contract(Answer(), ImageTask(task="tensors", pixels=PIXELS, axes=axes))
    assert {each.name: each.shape for each in contract.outputs} == {
        "pixels_out": ("batch", 3, "?", "width"),
        "sequence": ("batch", 3, "?"),
        "classes": ("batch", "height", "width"),
        "anchors": (1, 20),
    }
    still = image_contract(Answer(), ImageTask(task="tensors", pixels=PIXELS, axes={}))
    assert [each.shape for each in still.outputs] == [(1, 3, 6, 16), (1, 3, 192), (1, 12, 16), (1, 20)]


def test_an_axis_of_one_size_is_fixed_there() -> None:
    axes = {"batch": Range(low=1, high=1), "height": Range(low=12, high=12), "width": Range(low=4, high=64)}
    contract = image_contract(Head(lambda x: x), ImageTask(task="tensors", pixels=PIXELS, axes=axes))
    assert contract.inputs[0].shape == (1, 12, "width", 3) and list(contract.axes) == ["width"]
    assert with_axes(contract, {"width": Range(low=16, high=16)}).inputs[0].shape == (1, 12, 16, 3)
    with pytest.raises(ContractError, match=r"height=20\.\.20 holds one size, which is not the contract's own 12"):
        image_contract(Head(lambda x: x), ImageTask(task="tensors", pixels=PIXELS, axes={"height": Range(low=20, high=20)}))
    with pytest.raises(ContractError, match=r"a single image is a batch of 1, .* got 2\.\.8: batch=1\.\.8"):
        image_contract(Head(lambda x: x), ImageTask(task="tensors", pixels=PIXELS, axes={"batch": Range(low=2, high=8)}))


def test_a_batch_of_two_at_most_is_a_batch() -> None:
    contract = image_contract(Head(lambda x: x.mean((2, 3))), ImageTask(task="tensors", pixels=PIXELS, axes={"batch": Range(low=1, high=2)}))
    assert contract.outputs[0].shape == ("batch", 3)


def test_a_lazy_module_is_ready_after_its_contract() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    contract = image_contract(lazy, ImageTask(task="classification", pixels=PIXELS))
    assert contract.outputs[0].shape == ("batch", 4)
    preflight(lazy, contract)


def test_logits_that_do_not_come_first_are_refused() -> None:
    features = Head(lambda x: {"features": x.mean((2, 3)), "logits": x.amax((2, 3))})
    with pytest.raises(ContractError, match="from the first output, which is 'features', not 'logits': let a wrapper return 'logits' first"):
        image_contract(features, ImageTask(task="classification", pixels=PIXELS))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ContractError, match="2 labels for an output of shape \\('batch', 3\\)"):
        image_contract(Head(lambda x: x.mean((2, 3))), ImageTask(task="classification", pixels=PIXELS, labels=("a", "b")))
    with pytest.raises(ContractError, match="image-to-image needs 1 or 3 channels out"):
        image_contract(Head(lambda x: torch.cat([x, x], 1)), ImageTask(task="image-to-image", pixels=PIXELS))
    with pytest.raises(NetworkFailure, match=r"the network fails on an input of shape \(2, 3, 12, 16\): expected"):
        image_contract(Head(_fail), ImageTask(task="segmentation", pixels=PIXELS))


@pytest.mark.parametrize(
    ("task", "shape", "fits"),
    [
        ("classification", ("batch", 1), False),
        ("classification", ("batch", 2), True),
        ("segmentation", ("batch", 1, "height", "width"), False),
        ("segmentation", ("batch", 2, "height", "width"), True),
        ("embedding", ("batch", 1), True),
    ],
)
def test_one_class_is_no_choice(task: TaskName, shape: tuple[int | str, ...], fits: bool) -> None:
    pixels = Input(name="pixels", dtype="uint8", shape=("batch", 8, 8, 3), pixels=Pixels(height=8, width=8, mean=(0.5,) * 3, std=(0.5,) * 3))
    output = Output(name="out", dtype="float32", shape=shape, kind="logits" if task == "classification" else "tensor")
    contract = Contract(task=task, inputs=(pixels,), outputs=(output,), axes={"batch": Range(low=1, high=4)})
    with contextlib.nullcontext() if fits else pytest.raises(ContractError, match=f"{task} needs at least two classes, but 'out' has one: for one logit z"):
        require_classes(contract)
    z = torch.linspace(-5, 5, 11)[:, None]  # what the message advises
    torch.testing.assert_close(torch.softmax(torch.cat([torch.zeros_like(z), z], 1), 1)[:, 1:], torch.sigmoid(z))


def _fail(x: torch.Tensor) -> torch.Tensor:
    raise ValueError("expected something else")


@pytest.mark.parametrize("weights", [ResNet50_Weights.IMAGENET1K_V1, ResNet50_Weights.IMAGENET1K_V2, MobileNet_V2_Weights.IMAGENET1K_V1])
def test_a_weights_object_knows_its_pixels(weights: object) -> None:
    """The same image through torchvision's own transforms, undone to levels, must be ours to one level."""
    pixels = pixels_of_weights(weights)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 411, 3), dtype=np.uint8)).resize((640, 427))
    theirs = weights.transforms()(photo)  # type: ignore[attr-defined]
    levels = (theirs * torch.tensor(pixels.std)[:, None, None] + torch.tensor(pixels.mean)[:, None, None]) * 255
    ours = TF.pil_to_tensor(Image.fromarray(prepare(photo, pixels))).float()
    assert ours.shape == theirs.shape and (ours - levels).abs().max() <= 1.01


def test_segmentation_weights_and_others() -> None:
    assert pixels_of_weights(FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1).height == 520
    with pytest.raises(ExportError, match="expected the transforms of a classification"):
        pixels_of_weights(type("Odd", (), {"transforms": staticmethod(lambda: object())})())


def test_axes_can_be_narrowed_and_fixed() -> None:
    contract = network("cnn").contract(tuple("0123456789"), 32)
    fixed = with_axes(contract, {"batch": Range(low=1, high=4)})
    assert fixed.inputs[0].shape == ("batch", 32, 32, 3) and dict(fixed.axes) == {"batch": Range(low=1, high=4)}
    assert with_axes(contract, {}).outputs[0].shape == (1, 10)
    with pytest.raises(ContractError, match="has the axes batch, height, width, got depth"):
        with_axes(contract, {"depth": Range(low=1, high=4)})


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), r"divide by 255 \(mean 0\.485,0\.456,0\.406; std 0\.229,0\.224,0\.225\)"),
        ((123.675, 116.28, 103.53), (0.229, 0.224, 0.225), r"^mean .* divide by 255 \(mean 0\.485,0\.456,0\.406\)"),
        ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0), r"^std .* divide by 255 \(std 1,1,1\)"),
    ],
)
def test_mean_and_std_in_levels_are_noticed(mean: tuple[float, ...], std: tuple[float, ...], words: str) -> None:
    """As OpenCV and mmcv write them: the network would see other numbers, and every comparison would agree."""
    with pytest.raises(ContractError, match=words):
        image_contract(nn.Conv2d(3, 3, 1), ImageTask(task="tensors", pixels=Pixels(height=8, width=8, mean=mean, std=std)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pixels": (48, 48)}, "pixels must be a Pixels, such as"),
        ({"axes": {"batch": (1, 4)}}, "axes must be a mapping from names to ranges"),
        ({"axes": ["batch"]}, "axes must be a mapping from names to ranges"),
        ({"axes": {"batch": Range(low=8, high=1)}}, "axis 'batch' has the range 8..1: expected 1 <= low <= high"),
        ({"pixels": Pixels(height=48.0, width=-48)}, r"pixels\.height must be a whole number .*48\.0; pixels\.width must be .*-48"),  # type: ignore[arg-type]
        ({"pixels": Pixels(height=8, width=8, mean=0.5)}, r"pixels\.mean must be a tuple of numbers"),  # type: ignore[arg-type]
        ({"pixels": Pixels(height=8, width=8, mode="rgb")}, r"pixels\.mode must be one of"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_description_is_refused_at_once(given: dict[str, object], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        ImageTask(**{"task": "tensors", "pixels": Pixels(height=8, width=8), **given})  # type: ignore[arg-type]


def test_nothing_given_is_the_same_through_both_doors() -> None:
    assert (Pixels(height=8, width=8).mean, Pixels(height=8, width=8, mode="L").std) == ((0.0, 0.0, 0.0), (1.0,))


@pytest.mark.parametrize(
    ("size", "axes"), [(128, "batch=1..4,height=64..256:32,width=64..256:32"), (224, "height=32..224,width=32..224"), (60, "height=32..64,width=32..64")]
)
def test_a_width_is_never_called_height(size: int, axes: str) -> None:
    """Both sides reached the same limit of their ranges, and the bundle then promised square maps."""
    contract = image_contract(nn.Conv2d(3, 5, 3, 1, 1), ImageTask(task="segmentation", pixels=Pixels(height=size, width=size), axes=parse_axes(axes)))
    assert contract.outputs[0].shape[1:] == (5, "height", "width")


def test_outputs_that_turn_or_join_the_sides_are_told_apart() -> None:
    class Turned(nn.Module):
        def forward(self, x):  # type: ignore[no-untyped-def]
            return x.transpose(2, 3), x.flatten(2), x[:, :, :, :1]

    contract = image_contract(Turned(), ImageTask(task="tensors", pixels=Pixels(height=60, width=60), axes=parse_axes("height=32..64,width=32..64")))
    assert [each.shape for each in contract.outputs] == [(1, 3, "width", "height"), (1, 3, "?"), (1, 3, "height", 1)]
