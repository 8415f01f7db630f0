"""The arguments of an export as values: what is accepted, and the one sentence for what is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from edgeport_export import ExportError, ExportOptions, ImageTask
from edgeport_export.progress import no_progress
from edgeport_export.request import ExportRequest, as_path, make_request
from edgeport_runtime import Contract, EdgeportError, Example, ImageError, InputError, Pixels
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import image_to_image

GRAY = np.full((16, 16, 3), 100, np.uint8)


def request(contract: Contract | ImageTask, **changes: Any) -> ExportRequest:
    given: dict[str, Any] = {
        "network": nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "name": "n",
        "calibration": (),
        "held_out": (),
        "provenance": None,
        "options": None,
        "progress": no_progress,
    }
    return make_request(contract=contract, **{**given, **changes})


def test_left_out_is_what_the_options_say(class_contract: Contract) -> None:
    found = request(class_contract)
    assert (found.options, found.provenance, found.calibration, found.held_out, found.wants_int8) == (ExportOptions(), {}, [], [], False)


def test_an_image_task_becomes_a_contract_by_running_the_network() -> None:
    found = request(ImageTask(task="classification", pixels=Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3)))
    assert found.contract.outputs[0].shape == ("batch", 3) and found.contract.task == "classification"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("dark/a.png", "dark/b.png", "bright/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(GRAY).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("prefix", ["", "folder:"])
def test_calibration_from_a_folder_takes_the_images_at_any_depth(class_contract: Contract, folder: Path, prefix: str) -> None:
    found = request(class_contract, calibration=f"{prefix}{folder}")
    assert [each.source for each in found.calibration] == [folder / "bright/c.png", folder / "dark/a.png", folder / "dark/b.png"]
    assert all(each.truth is None for each in found.calibration) and found.wants_int8


def test_held_out_from_a_folder_takes_the_labels(class_contract: Contract, folder: Path) -> None:
    found = request(class_contract, held_out=folder)
    assert [(Path(str(each.source)).name, class_contract.labels[int(str(each.truth))]) for each in found.held_out] == [
        ("c.png", "bright"),
        ("a.png", "dark"),
        ("b.png", "dark"),
    ]


@pytest.mark.parametrize(
    "images", [[GRAY, Image.fromarray(GRAY)], (Example(source=GRAY), GRAY), np.stack([GRAY, GRAY]), (each for each in (GRAY, GRAY)), [(GRAY, 1), (GRAY, 2)]]
)
def test_calibration_from_any_iterable(class_contract: Contract, images: Any) -> None:
    found = request(class_contract, calibration=images)
    assert len(found.calibration) == 2 and all(isinstance(each, Example) for each in found.calibration)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": lambda x: x}, "network must be a torch.nn.Module, got function"),
        ({"name": 3}, "name must be a str, got int"),
        ({"options": {}}, "options must be an ExportOptions, got dict"),
        ({"provenance": [1]}, "provenance must be a mapping of str to str, got list"),
        ({"provenance": {"checkpoint_sha256": None}}, "provenance must hold text alone"),
        ({"calibration": 3}, "calibration: expected a folder, or several images or Examples in a list, got one int"),
        ({"calibration": GRAY}, "calibration: expected a folder, or several images or Examples in a list, got an array of shape (16, 16, 3)"),
        ({"calibration": "nowhere"}, "calibration: nowhere: expected a folder of images"),
        ({"calibration": [GRAY, 3.5]}, "calibration: expected an Example, an image or a pair (image, truth), got float"),
        ({"held_out": [GRAY]}, "held_out: 1 of 1 examples have no truth to evaluate them with"),
        ({"held_out": "nowhere"}, "held_out: nowhere: expected one folder of images per label"),
        ({"options": ExportOptions(benchmark_batch=9)}, "speed was to be measured at batches of 9 (--batch), but the contract allows at most 8"),
    ],
)
def test_another_kind_gets_one_sentence(class_contract: Contract, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ExportError, InputError)) as error:
        request(class_contract, **changes)
    assert message in str(error.value) and isinstance(error.value, EdgeportError)


def test_a_contract_or_a_folder_of_another_kind() -> None:
    with pytest.raises(ExportError, match=r"contract must be an edgeport_runtime\.Contract or an edgeport_export\.ImageTask, got dict"):
        request({})  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="out must be a str or a Path, got int"):
        as_path(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("widths", "others"), [((90, 40), ""), ((40, 90, 40, 91, 92), r" \(and 2 more images\)")])
def test_images_that_do_not_fit_are_named_before_any_work(widths: tuple[int, ...], others: str) -> None:
    contract = image_to_image(Pixels(height=32, width=32, resize="keep"), image_axes(smallest_px=16, largest_px=48, largest_batch=4))
    images = [np.zeros((40, width, 3), np.uint8) for width in widths]
    with pytest.raises(ImageError, match=rf"calibration: .* 90 px is too large .*{others}; mend or remove .*, or promise their sizes \(--dynamic"):
        request(contract, calibration=images).require_readable_images()
    request(contract, calibration=[GRAY, GRAY]).require_readable_images()
    request(contract, calibration=images, options=ExportOptions(precisions=("fp32",))).require_readable_images()  # nobody reads them
