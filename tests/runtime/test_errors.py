import pytest

from edgeport_runtime import errors
from edgeport_runtime.errors import EdgeportError, first_line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("out of memory\nwith details"), "out of memory"),
        (RuntimeError("\n  indented \n more"), "indented"),
        (MemoryError(), "MemoryError"),  # no message at all
        (ValueError(" \n\t"), "ValueError"),
        (KeyError("name"), "'name'"),
    ],
)
def test_the_first_line_that_says_something(error: BaseException, expected: str) -> None:
    assert first_line(error) == expected


def test_every_error_is_drawn_in_the_tree() -> None:
    found = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, EdgeportError)]
    assert len(found) == 12 and all(each.__name__ in (errors.__doc__ or "") for each in found)
