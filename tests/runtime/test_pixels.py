import pytest

from edgeport_runtime import ContractError, Pixels
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification

AXES = image_axes(smallest_px=4, largest_px=64, largest_batch=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "height must be a whole number of at least 1"),
        ({"mode": "CMYK"}, "mode must be one of"),
        ({"resize": "squash"}, "resize must be one of"),
        ({"resize": "crop"}, "resize_shorter_px"),
        ({"interpolation": "magic"}, "interpolation must be one of"),
        ({"mean": (0.5,)}, "mean must have 3 values"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be above 0"),
        ({"fill": 256}, "fill must be in 0..255"),
    ],
)
def test_a_fault_in_the_pixels_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        classification(Pixels(**{"height": 16, "width": 16, **change}), ("a", "b"), AXES)  # type: ignore[arg-type]
