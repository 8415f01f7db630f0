"""How far two models are apart in one output, over all inputs: one frozen, truthy result with the limit it was held to and where that came from."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeport_export.quantization.output_error import LEAST_FOLDS, sqnr_db, standard_error_db

Array = NDArray[Any]
MOST_ERROR_DB = 1.5  # twice that is the least that a doubled error moves


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What a difference is held to. `relative`: largest difference over the output's range; `least_db`: signal over error. One of them is None.

    `source`: where it comes from, in words.
    """

    relative: float | None = None
    least_db: float | None = None
    source: str

    def __str__(self) -> str:
        figure = f"{self.relative:.1e} of the range" if self.relative is not None else f"{self.least_db:.1f} dB"
        return f"{figure}: {self.source}"


@dataclass(frozen=True, kw_only=True)
class OutputDifference:
    """One output over all inputs. True if something was compared, nothing failed, and the difference is within the limit.

    `elements`: number of values compared. `max_abs`, `rms`: in the output's own units. `relative`: the largest difference over the output's range
    at its input, or over its largest value if that is more. `sqnr_db`: signal over error, the signal being what differs from input to input.
    `sqnr_error_db`: its standard error, from leaving images out, at most MOST_ERROR_DB; that much for fewer than three images.
    `cosine`: of all values, -1..1; NaN if one side is all zeros. `worst`: index of the largest difference in the input named `worst_input`.
    `faults`: why some inputs could not be compared. `decides`: whether the limit counts, or something else was to decide.
    """

    output: str
    elements: int
    max_abs: float
    relative: float
    rms: float
    sqnr_db: float
    cosine: float
    worst: tuple[int, ...]
    worst_input: str
    limit: Limit
    sqnr_error_db: float = 0.0
    faults: tuple[str, ...] = ()
    decides: bool = True

    def __bool__(self) -> bool:
        return not self.faults and self.elements > 0 and (self.is_within_limit or not self.decides)

    @property
    def is_within_limit(self) -> bool:
        """Whether the difference itself is small enough; NaN is not."""
        if self.limit.relative is not None:
            return self.relative <= self.limit.relative
        return self.limit.least_db is not None and self.sqnr_db >= self.limit.least_db - 2 * self.sqnr_error_db

    def __str__(self) -> str:
        if not self.elements and not self.faults:
            return f"FAILED {self.output}: nothing was compared, because there were no inputs or no values"
        words = [] if self else ["FAILED"]
        told = [f"{self.output}: {each}" for each in self.faults[:2]]
        if len(self.faults) > 2:
            told.append(f"and so at {len(self.faults) - 2} more inputs")
        if self.elements:
            figures = f"largest difference {self.max_abs:.3g}, {self.relative:.1e} of the range, at {self.worst} of {self.worst_input}"
            uncertain = "" if self.limit.least_db is None else f", known to {self.sqnr_error_db:.1f} dB"
            told.append(f"{self.output}: {figures}; rms {self.rms:.2g}, {self.sqnr_db:.1f} dB{uncertain}, cosine {self.cosine:.7f} ({self.limit})")
        return " ".join([*words, "; ".join(told)])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"passed": bool(self), **asdict(self)}


def fault(expected: Array, got: Array, names: tuple[str, str] = ("the first", "the second")) -> str | None:
    """Why two answers cannot be compared by their values; None if they can. NaN in both is a fault too: it hides whatever it replaced.

    `names`: of both sides.
    """
    first, second = names
    if expected.shape != got.shape:
        return f"the shapes differ, {expected.shape} of {first} and {got.shape} of {second}"
    if expected.dtype.kind != got.dtype.kind:
        return f"the dtypes differ, {expected.dtype} of {first} and {got.dtype} of {second}"
    if not expected.size:
        return "there are no values in it"
    if expected.dtype.kind == "f":
        nans, infinite = [int(np.isnan(each).sum()) for each in (expected, got)], [int(np.isinf(each).sum()) for each in (expected, got)]
        if any(nans):
            return f"NaN: {nans[0]} values of {first}, {nans[1]} of {second}, of {expected.size}"
        if any(infinite) and not np.array_equal(np.isinf(expected) * np.sign(expected), np.isinf(got) * np.sign(got)):
            return f"infinite: {infinite[0]} values of {first}, {infinite[1]} of {second}, not the same ones"
    return None


def finite(expected: Array, got: Array) -> tuple[Array, Array]:
    """Both with equal infinities as 0, so that these are no difference."""
    if expected.dtype.kind != "f" or not np.isinf(expected).any():
        return expected, got
    where = np.isinf(expected)
    return np.where(where, 0, expected), np.where(where, 0, got)


def output_difference(
    output: str, names: Sequence[str], expected: Sequence[Array], got: Sequence[Array], relative: Sequence[float], limit: Limit, faults: Sequence[str] = ()
) -> OutputDifference:
    """`expected`, `got`: comparable arrays, one for each input of `names`. `relative`: largest difference over the range, for each of them."""
    if not expected:
        nothing: dict[str, Any] = {"max_abs": math.inf, "relative": math.inf, "rms": math.inf, "sqnr_db": -math.inf, "cosine": math.nan}
        return OutputDifference(output=output, elements=0, **nothing, worst=(), worst_input="", limit=limit, faults=tuple(faults))
    a = [each.astype(np.float64) for each in expected]
    b = [each.astype(np.float64) for each in got]
    apart = [np.abs(first - second) for first, second in zip(a, b, strict=True)]
    place = int(np.argmax(relative))
    elements = sum(each.size for each in a)
    dot, lengths = sum(float(np.vdot(x, y)) for x, y in zip(a, b, strict=True)), [math.sqrt(sum(float(np.vdot(x, x)) for x in each)) for each in (a, b)]
    return OutputDifference(
        output=output,
        elements=elements,
        max_abs=max(float(each.max()) for each in apart),
        relative=float(relative[place]),
        rms=math.sqrt(sum(float(np.sum(np.square(each))) for each in apart) / elements),
        sqnr_db=sqnr_db(a, b),
        cosine=dot / (lengths[0] * lengths[1]) if all(lengths) else math.nan,
        worst=tuple(int(each) for each in np.unravel_index(int(np.argmax(apart[place])), apart[place].shape)),
        worst_input=names[place],
        limit=limit,
        sqnr_error_db=_sqnr_error_db(a, b),
        faults=tuple(faults),
    )


def _sqnr_error_db(expected: Sequence[Array], got: Sequence[Array]) -> float:
    """Image by image. Figures that are no numbers have no error: those of equal answers."""
    rows = [(first[i : i + 1], second[i : i + 1]) for first, second in zip(expected, got, strict=True) if first.ndim for i in range(len(first))]
    if len(rows) < LEAST_FOLDS:
        return MOST_ERROR_DB
    found = standard_error_db(len(rows), lambda kept: sqnr_db([rows[index][0] for index in kept], [rows[index][1] for index in kept]))
    return min(MOST_ERROR_DB, found or 0.0)
