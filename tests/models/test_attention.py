import pytest
import torch

from edgeport_models import AttentionNet


@pytest.mark.parametrize("extra", [(0, 0), (1, 0), (3, 20), (29, 2)])
def test_it_takes_any_size_from_its_minimum_up(extra: tuple[int, int]) -> None:
    sides = [AttentionNet.SMALLEST_PX + more for more in extra]
    with torch.inference_mode():
        assert AttentionNet(num_classes=7, channels=16).eval()(torch.randn(2, 3, *sides)).shape == (2, 7)


def test_attention_goes_over_a_quarter_of_each_side() -> None:
    with torch.inference_mode():
        assert AttentionNet().stem(torch.zeros(1, 3, 128, 128)).shape == (1, 128, 32, 32)  # 1,024 positions
