from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeport_export import ExportOptions, export_bundle, read_plan
from edgeport_export.diagnosis.bundle_blame import blame_bundle
from edgeport_export.diagnosis.graph_changes import GraphChange
from edgeport_export.diagnosis.reproduction import Reproduction
from edgeport_export.network.reference import TorchReference
from edgeport_runtime import Bundle, Contract


def test_modules_products_and_changes_are_told_together(tiny_bundle: Path, network: nn.Module) -> None:
    bundle = Bundle(tiny_bundle)
    reference = TorchReference(network, bundle.manifest.contract)
    sound = blame_bundle(bundle, reference)
    assert sound and sound.modules and sound.products is not None and not sound.changed
    assert set(sound.to_dict()) == {"passed", "changed", "fp32", "int8"} and sound.to_dict()["passed"] is True
    change = GraphChange(kind="values", module="conv2", told="a weight")
    changed = Reproduction(precision="int8", same=False, changes=(change, change))
    older = Reproduction(precision="fp32", same=False, changes=(change,), decides=False)
    found = blame_bundle(bundle, reference, [changed, older], [{"batch": 1, "height": 20, "width": 24}])
    assert not found and found.changed == {"int8": ("conv2",)}
    assert str(found).startswith("int8: conv2 is not what this network exports to\nfp32: ")


class Normalized(nn.Module):
    """Two channels of the normalization are 16 times as large as the others."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.mix, self.head = nn.Conv2d(3, 32, 4, 4), nn.LayerNorm(32), nn.Linear(32, 48), nn.Linear(48, 3)
        with torch.no_grad():
            self.norm.weight[3:5] *= 16
            self.mix.weight[:, 3:5] /= 16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mix(self.norm(self.patches(x).flatten(2).transpose(1, 2)))).mean(1))


@pytest.mark.usefixtures("fixed_latencies")
def test_outliers_that_were_moved_into_weights_are_no_fault(class_contract: Contract, tmp_path: Path) -> None:
    generator, module = np.random.default_rng(0), Normalized().eval()
    images = [generator.integers(0, int(generator.integers(9, 256)), (16, 16, 3), dtype=np.uint8) for _ in range(40)]
    options = ExportOptions(always_keep_int8=True)
    bundle = export_bundle(module, class_contract, tmp_path / "b", calibration=images, options=options)
    assert read_plan(bundle.folder).smoothing
    found = blame_bundle(bundle, TorchReference(module, class_contract))
    assert found and found.products is not None and "mix" in {cost.module for cost in found.products.costs}
