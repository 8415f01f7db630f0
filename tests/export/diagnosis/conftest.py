"""A small bundle, its network, and what other tools make of it."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgeport_export.network.reference import TorchReference
from edgeport_runtime import Bundle


@pytest.fixture(scope="session")
def network(tiny: ModuleType) -> nn.Module:
    """The one that `tiny_bundle` was made from."""
    return tiny.trained_classifier()


@pytest.fixture(scope="session")
def plain_file(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torch.onnx.export alone makes of it: floats (N, C, H, W), every axis open but the channels'."""
    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    shapes = ({0: "batch", 2: "height", 3: "width"},)
    program = torch.onnx.export(copy.deepcopy(network), (torch.zeros(2, 3, 16, 20),), dynamo=True, verbose=False, dynamic_shapes=shapes)
    assert program is not None
    program.save(path, external_data=False)
    return path


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle(tiny_bundle)


@pytest.fixture
def reference(network: nn.Module, bundle: Bundle) -> TorchReference:
    return TorchReference(network, bundle.manifest.contract)


@pytest.fixture
def altered(tmp_path: Path) -> Callable[..., Path]:
    """A copy of an ONNX file in which one weight is multiplied, the one of median size of the weights with this part in their name."""

    def made(path: Path, part: str, factor: float) -> Path:
        model = onnx.load(path)
        weights = next(each for each in model.graph.initializer if part in each.name and len(each.dims) > 1)
        values = numpy_helper.to_array(weights).copy()
        order = abs(values).ravel().argsort()
        values.ravel()[order[len(order) // 2]] *= factor
        weights.CopyFrom(numpy_helper.from_array(values, weights.name))
        onnx.save(model, tmp_path / "altered.onnx")
        return tmp_path / "altered.onnx"

    return made
