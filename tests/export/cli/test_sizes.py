import pytest

from edgeport_export.cli.sizes import read_size
from edgeport_runtime import InputError


def test_a_size_is_height_by_width() -> None:
    assert read_size("480x640") == (480, 640) and read_size("8X9") == (8, 9) and read_size(None) is None


@pytest.mark.parametrize("text", ["", "480", "480x", "0x5", "-1x5", "4.5x5", "٣x٤", "1x2x3"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a size as HEIGHTxWIDTH in pixels, such as 224x224"):
        read_size(text)
