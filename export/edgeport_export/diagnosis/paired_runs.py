"""Two models run on the same inputs: their answers side by side, and beside them a third one that tells how far apart two right answers are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeport_export.errors import ExportError, NetworkFailure
from edgeport_export.network.wrapper import compared_outputs
from edgeport_export.progress import ProgressCallback
from edgeport_export.validation.last_bits import Envelope, envelopes, last_bit_noise
from edgeport_export.validation.parity import Parity
from edgeport_export.validation.sweep import Row, compared
from edgeport_runtime import Contract, DeviceError
from edgeport_runtime.engine import Arrays

from .differences import fault, finite
from .inputs import InputCase
from .nearby_graph import nearby_graph, nearby_inputs
from .sides import Answer, GraphSide, NetworkSide, Side

DRAWS = 4  # graphs nearby, taken in turns: each is a session of its own


@dataclass(frozen=True, kw_only=True)
class PairedRuns:
    """`rows`: what can be compared; `Row.run` is the index of a case. `faults`: for each output why the other cases cannot.

    In a row, `exact` is the right side's answer (in float64 if that is a network and both are fp32), `single` one that is as right, `got` the other side's.
    """

    names: tuple[str, ...]
    cases: tuple[InputCase, ...]
    rows: list[Row] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)

    def of(self, output: str) -> list[Row]:
        return [row for row in self.rows if row.output == output]

    def arrays(self, output: str) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """The right side's answers and the other's, comparable ones."""
        return [row.exact for row in self.of(output)], [np.asarray(row.got) for row in self.of(output)]

    def case_names(self, output: str) -> list[str]:
        return [self.cases[row.run].name for row in self.of(output)]


class RightSide:
    """The side whose answers count as right. `noise_is_measured`: whether there is a second answer that is as right as its own."""

    def __init__(self, side: Side, contract: Contract, *, noise_is_measured: bool) -> None:
        self.contract, self.name = contract, side.name
        self.network = side.reference(contract) if isinstance(side, NetworkSide) else None
        self._answer: Answer = side.answer(contract) if self.network is None else self.network.run
        self._nearby: list[Answer] = []
        if noise_is_measured and isinstance(side, GraphSide):
            files = (replace(side, model=nearby_graph(side.proto, draw), engine="onnxruntime") for draw in range(DRAWS))
            self._nearby = [each.answer(contract) for each in files]
        self._in_double = noise_is_measured and self.network is not None

    def answers(self, index: int, arrays: Arrays) -> tuple[Arrays, Arrays]:
        """The right answer, and one that is as right. Raises NetworkFailure, DeviceError."""
        own = self._answer(arrays)
        if self._in_double and self.network is not None:
            return self.network.double.run(arrays), own
        return own, self._nearby[index % DRAWS](nearby_inputs(arrays, index)) if self._nearby else own

    def envelopes(self, runs: Sequence[Arrays]) -> list[dict[str, Envelope]] | None:
        """See `validation.last_bits`; None for a file."""
        return envelopes(self.network, runs) if self.network is not None else None


def run_both(right: RightSide, other: Answer, name: str, cases: Sequence[InputCase], progress: ProgressCallback) -> PairedRuns:
    """Every case on both sides. A side that fails at an input is a fault there; one that fails at all of them cannot be compared. `name`: of the other side.

    Raises ExportError.
    """
    failures: list[str] = []
    names = tuple(compared_outputs(right.contract))
    runs = PairedRuns(names=names, cases=tuple(cases), faults={name: [] for name in names})
    for index, case in enumerate(cases):
        progress("comparing", index, len(cases))
        try:
            (exact, single), got = right.answers(index, case.arrays), other(case.arrays)
        except (DeviceError, NetworkFailure) as error:
            failures.append(str(error))
            for output in names:
                runs.faults[output].append(f"{case.name}: {error}")
            continue
        for output in names:
            lacking = [side for side, answer in ((right.name, single), (name, got)) if output not in answer]
            why = f"the output is missing in {' and in '.join(lacking)}" if lacking else fault(single[output], got[output], (right.name, name))
            if why is not None:
                runs.faults[output].append(f"{case.name}: {why}")
                continue
            one, two = finite(exact[output], got[output])
            runs.rows.append(Row(run=index, sizes={"case": index}, output=output, exact=one, single=finite(single[output], single[output])[0], got=two))
    if cases and len(failures) == len(cases):
        raise ExportError(f"{right.name} and {name} have no input in common, so they cannot be compared: {failures[0]}")
    return runs


def noise_parity(runs: PairedRuns, right: RightSide) -> Parity:
    """The rows held to the noise, as at export. There must be some."""
    names = [name for name in runs.names if runs.of(name)]

    def looked_at(indices: Sequence[int]) -> Mapping[int, Mapping[str, Any]]:
        found = right.envelopes([runs.cases[index].arrays for index in indices])
        return dict(zip(indices, found or [], strict=True))

    def noise_at(indices: Sequence[int]) -> list[dict[str, float]]:
        assert right.network is not None  # or it is not asked
        return last_bit_noise(right.network, [runs.cases[index].arrays for index in indices])

    return compared(names, runs.rows, looked_at, noise_at) if right.network is not None else compared(names, runs.rows)
