from pathlib import Path

import pytest

from edgeport_export import NetworkSource, export_bundle, load_source, verify
from edgeport_export.sources import load_examples
from edgeport_runtime import AlteredError, BundleError

pytestmark = pytest.mark.usefixtures("fixed_latencies")


@pytest.fixture
def made(checkpoint: Path, tmp_path: Path) -> tuple[Path, NetworkSource]:
    source = load_source(checkpoint)
    calibration, _ = load_examples("digits", source.contract)
    provenance = {"checkpoint_sha256": source.checkpoint_sha256}
    return export_bundle(source.network, source.contract, tmp_path / "cnn", name="cnn", calibration=calibration, provenance=provenance), source


def test_a_sound_bundle_verifies_and_a_changed_network_does_not(made: tuple[Path, NetworkSource]) -> None:
    bundle, source = made
    found = verify(bundle, source)
    assert found and found.same_checkpoint and len(found.checks) == 2
    weight = source.network.head.weight.data
    weight[0, 0] += 1e-3 * weight.abs().max()
    changed = verify(bundle, source)
    assert not changed and not changed.parity and "FAILED logits at" in str(changed)


def test_another_checkpoint_is_noticed(made: tuple[Path, NetworkSource]) -> None:
    bundle, source = made
    found = verify(bundle, NetworkSource(**{**vars(source), "checkpoint_sha256": "0" * 64}))
    assert not found and found.parity and "made from another checkpoint" in str(found)
    entry_contract = source.contract.__class__.from_dict({**source.contract.to_dict(), "labels": list("abcdefghij")})
    with pytest.raises(BundleError, match="made for another contract"):
        verify(bundle, NetworkSource(**{**vars(source), "contract": entry_contract}))


def test_an_altered_bundle_is_refused(made: tuple[Path, NetworkSource]) -> None:
    bundle, source = made
    path = bundle / "test_data_set_1" / "input_0.pb"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(AlteredError):
        verify(bundle, source)
