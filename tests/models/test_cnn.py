import pytest
import torch

from edgeport_models import CNN, DepthwiseSeparableConv2d


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("extra", [(0, 0), (1, 0), (3, 20), (29, 2)])
def test_it_takes_any_size_from_its_minimum_up(extra: tuple[int, int], separable: bool) -> None:
    sides = [CNN.SMALLEST_PX + more for more in extra]
    with torch.inference_mode():
        assert CNN(num_classes=7, separable=separable).eval()(torch.randn(2, 3, *sides)).shape == (2, 7)


def test_below_its_minimum_it_fails() -> None:
    with pytest.raises(RuntimeError):
        CNN()(torch.randn(1, 3, CNN.SMALLEST_PX - 1, CNN.SMALLEST_PX - 1))


def test_the_structure_that_is_promised() -> None:
    cnn = CNN(num_classes=10)
    assert (cnn.hidden.in_features, cnn.hidden.out_features, cnn.head.out_features) == (64 * 6 * 6, 128, 10)
    assert sum(isinstance(m, DepthwiseSeparableConv2d) for m in CNN(separable=True).modules()) == 2
    assert not any(isinstance(m, DepthwiseSeparableConv2d) for m in cnn.modules())
