from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from edgeport_export.rewrites.float_graph.precise_reduction import precise_reduction
from edgeport_export.rewrites.graph import GraphEditor
from edgeport_runtime import Pixels, SessionOptions
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification
from edgeport_runtime.device import open_session

HW = {0: "batch", 2: "height", 3: "width"}
EXAMPLE = torch.zeros(2, 3, 20, 28)
CONTRACT = classification(Pixels(height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3), ("a",), image_axes(smallest_px=1))

REDUCTIONS = {
    "norm": lambda x: x.norm(dim=(2, 3)),
    "norm that keeps its axes": lambda x: x.flatten(1).norm(dim=1, keepdim=True),
    "norm of everything": lambda x: x.norm(),
    "normalized": lambda x: F.normalize(x.flatten(1)) * 100,
    "log-sum-exp": lambda x: x.logsumexp((2, 3)),
    "log-sum-exp that keeps its axes": lambda x: (x - 1e4).logsumexp(1, keepdim=True),
    "log-sum-exp of nothing": lambda x: torch.where(x > -9, -torch.inf, x).logsumexp(3),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("sides", [(64, 128), (7, 5)])
def test_reductions_of_many_values_are_as_precise_as_pytorchs(exported_graph: Callable[..., onnx.ModelProto], name: str, sides: tuple[int, int]) -> None:
    model = exported_graph(REDUCTIONS[name], EXAMPLE, axes=[HW], translated=False)
    assert precise_reduction(GraphEditor(model), CONTRACT).changed == 1 and not precise_reduction(GraphEditor(model), CONTRACT)
    x = np.random.default_rng(0).standard_normal((4, 3, *sides)).astype(np.float32)
    got = open_session(model.SerializeToString(), SessionOptions(threads=1)).run(None, {"a": x})[0]
    exact = REDUCTIONS[name](torch.from_numpy(x).double()).numpy()
    finite = np.isfinite(exact)
    noise = np.abs(REDUCTIONS[name](torch.from_numpy(x)).numpy()[finite] - exact[finite]).max(initial=0)
    np.testing.assert_allclose(got, exact, atol=2 * noise + 1e-7, rtol=1e-7)
