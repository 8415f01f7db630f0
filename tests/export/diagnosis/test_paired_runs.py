from pathlib import Path

import numpy as np
import pytest
from torch import nn

from edgeport_export import ExportError, NetworkFailure
from edgeport_export.diagnosis.inputs import InputCase
from edgeport_export.diagnosis.paired_runs import RightSide, noise_parity, run_both
from edgeport_export.diagnosis.sides import GraphSide, NetworkSide
from edgeport_export.network.reference import TorchReference
from edgeport_export.progress import no_progress
from edgeport_runtime import Bundle, Contract, DeviceError
from edgeport_runtime.engine import Arrays


def cases(*heights: int) -> list[InputCase]:
    generator = np.random.default_rng(0)
    return [InputCase(name=f"{h} high", arrays={"pixels": generator.integers(0, 256, (2, h, 16, 3)).astype(np.uint8)}) for h in heights]


def test_a_network_is_right_in_float64_and_as_right_in_float32(network: nn.Module, class_contract: Contract) -> None:
    right = RightSide(NetworkSide(name="net", network=network), class_contract, noise_is_measured=True)
    arrays = cases(8)[0].arrays
    exact, single = right.answers(0, arrays)
    reference = TorchReference(network, class_contract)
    assert exact["logits"].dtype == np.float64 and np.array_equal(exact["logits"], reference.double.run(arrays)["logits"])
    assert np.array_equal(single["logits"], reference.run(arrays)["logits"])
    lossy = RightSide(NetworkSide(name="net", network=network), class_contract, noise_is_measured=False)
    assert all(np.array_equal(each["logits"], single["logits"]) for each in lossy.answers(0, arrays))


def test_the_noise_of_a_file_is_that_of_the_network_within_a_few_times(tiny_bundle: Path, network: nn.Module, class_contract: Contract) -> None:
    """What the last bit of the weights moves, against PyTorch's own distance from float64, over the same inputs."""
    given = cases(8, 12, 16, 20, 24, 32)
    file = GraphSide.of_bundle(Bundle(tiny_bundle))
    floors = []
    for side in (file, NetworkSide(name="net", network=network)):
        right = RightSide(side, class_contract, noise_is_measured=True)
        floors.append(noise_parity(run_both(right, file.answer(class_contract), "other", given, no_progress), right).floors["logits"])
    assert 1 / 3 < floors[0] / floors[1] < 3


def test_a_case_at_which_one_side_fails_or_gives_another_shape_is_a_fault(tiny_bundle: Path, class_contract: Contract) -> None:
    side = GraphSide.of_bundle(Bundle(tiny_bundle))
    right, answer = RightSide(side, class_contract, noise_is_measured=False), side.answer(class_contract)

    def other(arrays: Arrays) -> Arrays:
        height = arrays["pixels"].shape[1]
        if height == 12:
            raise NetworkFailure("too low")
        found = answer(arrays)
        return {name: value[:1] if height == 16 else value for name, value in found.items()}

    runs = run_both(right, other, "another", cases(8, 12, 16), no_progress)
    assert [row.run for row in runs.rows] == [0] and runs.case_names("logits") == ["8 high"]
    assert runs.faults["logits"] == ["12 high: too low", f"16 high: the shapes differ, (2, 3) of {side.name} and (1, 3) of another"]
    assert [len(each) for each in runs.arrays("logits")] == [1, 1]


def test_a_side_that_fails_at_every_input_cannot_be_compared(tiny_bundle: Path, class_contract: Contract) -> None:
    side = GraphSide.of_bundle(Bundle(tiny_bundle))

    def other(arrays: Arrays) -> Arrays:
        raise DeviceError("other: onnxruntime failed: Expected 1 channel")

    with pytest.raises(ExportError, match="and other have no input in common, so they cannot be compared: other: onnxruntime failed: Expected 1 channel"):
        run_both(RightSide(side, class_contract, noise_is_measured=False), other, "other", cases(8, 12), no_progress)
