import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from edgeport_export import ExportError, ImageTask, NetworkFailure, export_bundle, load_source, verify
from edgeport_export.sources import load_examples
from edgeport_runtime import AlteredError, Bundle, Pixels
from edgeport_runtime.tasks import TaskName

pytestmark = pytest.mark.usefixtures("fixed_latencies")
STORED = Path(__file__).parents[1] / "fixtures" / "format1" / "classifier"


def network_of_two_outputs() -> nn.Module:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.mean((2, 3)), x.amax((2, 3))

    return Two()


@pytest.fixture(scope="module")
def exported(checkpoint: Path, fix_latencies: Callable[[pytest.MonkeyPatch], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = load_source(checkpoint)
    calibration, _ = load_examples("digits", source.contract)
    with pytest.MonkeyPatch.context() as patch:
        fix_latencies(patch)
        return export_bundle(source.network, source.contract, tmp_path_factory.mktemp("exported") / "cnn", calibration=calibration).folder


@pytest.fixture
def made(exported: Path, checkpoint: Path, tmp_path: Path) -> tuple[Bundle, nn.Module]:
    """A copy, for a test to change, and the network."""
    return Bundle(shutil.copytree(exported, tmp_path / "cnn")), load_source(checkpoint).network


def test_a_sound_bundle_verifies_and_a_changed_network_does_not(made: tuple[Bundle, nn.Module]) -> None:
    bundle, network = made
    found = verify(bundle, network)
    assert found and found.same_weights and len(found.checks) == 2 and found.replayed > 5
    assert found.reproductions[0].same and found.stored and found.blame is None
    assert bool(verify(bundle.folder, network)) and bool(verify(str(bundle.folder), network))
    weight = network.head.weight.data
    weight[0, 0] += 1e-3 * weight.abs().max()
    changed = verify(bundle, network)
    assert not changed and not changed.parity and "FAILED logits at" in str(changed)
    assert not changed.reproductions[0] and "FAILED fp32 is not what this network exports to: head: head.weight[0, 0] is " in str(changed)


def test_int8_is_made_again_with_its_images_or_held_to_pytorch_without(made: tuple[Bundle, nn.Module]) -> None:
    bundle, network = made
    calibration, _ = load_examples("digits", bundle.manifest.contract)
    again, without = verify(bundle, network, calibration=calibration, blame=True), verify(bundle, network)
    assert again and again.reproductions[1].same and not again.lossy
    assert again.blame is not None and again.blame and "blame" in again.to_dict() and "modules agree within 4 times" in str(again)
    assert without and without.reproductions[1].same is None and [each.kind for each in without.lossy] == ["golden"]


@pytest.mark.parametrize(
    ("make", "task"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)), "classification"),
        (lambda: nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)), "image-to-image"),
        (network_of_two_outputs, "tensors"),
    ],
)
def test_a_bundle_that_python_made_verifies(make: Callable[[], nn.Module], task: TaskName, tmp_path: Path) -> None:
    """No name, no checkpoint, no data: what was not given is not compared."""
    torch.manual_seed(0)
    network = make().eval()
    bundle = export_bundle(network, ImageTask(task=task, pixels=Pixels(height=32, width=32)), tmp_path / "mine")
    found = verify(bundle, network)
    assert found and found.same_weights and verify(tmp_path / "mine", network)


def test_a_weight_too_small_to_show_in_the_outputs_is_noticed_by_its_hash(made: tuple[Bundle, nn.Module]) -> None:
    bundle, network = made
    network.head.bias.data[0] += 1e-9 + network.head.bias.data[0].abs() * 2**-23
    found = verify(bundle, network)
    assert found.parity and found.same_weights is False and not found
    assert "FAILED the bundle was made from other weights than these" in str(found)


def test_every_size_of_the_export_is_looked_at_again(made: tuple[Bundle, nn.Module]) -> None:
    """One that only a guard would bring, written into the evidence by hand, and one that the contract does not promise."""
    bundle, network = made
    path = bundle.folder / "evidence.json"
    evidence = json.loads(path.read_text())
    cases = evidence["parity"]["fp32"]["cases"]
    sizes = {"batch": 3, "height": 37, "width": 53}
    cases += [{**cases[0], "sizes": sizes}, {**cases[0], "sizes": {**sizes, "height": 1}}]
    path.write_text(json.dumps(evidence))
    swept = [dict(case.sizes) for case in verify(bundle, network).parity.cases]
    assert sizes in swept and not any(each["height"] == 1 for each in swept)


def test_without_evidence_it_says_so(made: tuple[Bundle, nn.Module]) -> None:
    bundle, network = made
    (bundle.folder / "evidence.json").unlink()
    found = verify(bundle, network)
    assert found and found.replayed == 0 and "the bundle's evidence lists no sizes" in str(found)


def test_a_bundle_of_format_1_does_not_hold_the_weights_hash(tiny: ModuleType) -> None:
    found = verify(STORED, tiny.trained_classifier())
    assert found.parity and found.same_weights is None and "compared by their outputs alone" in str(found)


def test_a_network_that_takes_other_inputs_fails_by_name(made: tuple[Bundle, nn.Module]) -> None:
    bundle, _ = made
    with pytest.raises(NetworkFailure, match="PyTorch itself fails at"):
        verify(bundle, nn.Conv2d(5, 3, 3))
    two = network_of_two_outputs()
    with pytest.raises(ExportError, match="made from another network: this one gives 2 outputs, the contract has 1"):
        verify(bundle, two)
    with pytest.raises(ExportError, match=r"network must be the torch\.nn\.Module that the bundle was made from, got str"):
        verify(bundle, "cnn.safetensors")  # type: ignore[arg-type]


def test_an_altered_bundle_is_refused(made: tuple[Bundle, nn.Module]) -> None:
    bundle, network = made
    path = bundle.folder / "test_data_set_1" / "input_0.pb"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(AlteredError):
        verify(bundle, network)
