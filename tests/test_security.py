"""docs/security.md keeps its word: each row names tests that exist, and each limit, format and error has its row."""

import ast
import re
from dataclasses import fields
from pathlib import Path

from edgeport_runtime import errors
from edgeport_runtime.image_limits import FORMATS, LIMITS, ImageLimits

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def known_tests() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        names = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
        found[path.name] = found.get(path.name, set()) | names
    return found


def rows() -> list[list[str]]:
    """The cells of every row of a table whose last column is of tests."""
    found, wanted = list[list[str]](), False
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            wanted = False
        elif cells[-1] == "test":
            wanted = True
        elif wanted and set(cells[0]) != {"-"}:
            found.append(cells)
    return found


def test_every_row_names_a_test_that_exists() -> None:
    known = known_tests()
    assert len(rows()) > 60
    for cells in rows():
        named = NAMED.findall(cells[-1])
        assert named, cells
        for file, test in named:
            assert test in known.get(file, set()), f"{file}::{test}"


def test_every_limit_has_a_row_with_its_number() -> None:
    first = [cells[0] for cells in rows()]
    for each in fields(ImageLimits):
        assert any(f"`{each.name}`" in cell for cell in first), each.name
    assert f"| `max_px` | {LIMITS.max_px:,} pixels |" in PAGE and f"| `max_file_mb` | {LIMITS.max_file_mb:g} MB |" in PAGE
    assert f"| `formats` | {', '.join(FORMATS)} |" in PAGE


def test_every_error_that_is_named_exists() -> None:
    known = {name for name in vars(errors) if name.endswith("Error")} | {"OutputError"}
    assert set(re.findall(r"`(\w+Error)`", PAGE)) <= known
