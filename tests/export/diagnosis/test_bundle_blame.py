from pathlib import Path

from torch import nn

from edgeport_export.diagnosis.bundle_blame import blame_bundle
from edgeport_export.diagnosis.graph_changes import GraphChange
from edgeport_export.diagnosis.reproduction import Reproduction
from edgeport_export.network.reference import TorchReference
from edgeport_runtime import Bundle


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
