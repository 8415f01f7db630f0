"""Sentences stay short: in every docstring and in every document, at most 35 words."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_WORDS = 35
SOURCES = sorted(path for part in ("runtime", "models", "export", "examples") for path in (ROOT / part).rglob("*.py"))
WRITTEN_BY_MACHINE = {"bench.md", "zoo.md", "api.md"}
PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in WRITTEN_BY_MACHINE]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), ROOT / "runtime" / "README.md", *PAGES]
END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)[)\"'*`]*\s+")


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", ast.get_docstring(node) or ""


def prose(text: str) -> Iterator[str]:
    """Paragraphs, list items and table cells, without code, trees and formulas that stand alone."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|]|\d+\.) )|\n(?=#)|\n(?=    )|\n(?=`\w+`)", text):
        for cell in paragraph.split(" | "):
            yield " ".join(cell.split())


def sentences(text: str) -> Iterator[str]:
    return (sentence for paragraph in prose(text) for sentence in END.split(paragraph))


def words(sentence: str) -> int:
    """Links count by their text, and a name such as `a, b, c` in code quotes as one word."""
    plain = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "code", sentence))
    return len([word for word in plain.split() if re.search(r"\w", word)])


def test_no_sentence_of_a_docstring_is_long() -> None:
    found = [(place, words(each), each[:90]) for path in SOURCES for place, text in docstrings(path) for each in sentences(text) if words(each) > MOST_WORDS]
    assert not found, "\n".join(map(str, found))


def test_no_sentence_of_a_document_is_long() -> None:
    found = [(path.name, words(each), each[:90]) for path in DOCUMENTS for each in sentences(path.read_text()) if words(each) > MOST_WORDS]
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("One two three. Four five.", [3, 2]),
        ("- one two\n- three", [2, 1]),
        ("Text with `many words in code` here.\n\n```\nnothing in here counts\n```\n", [4]),
        (" ".join(["word"] * 40) + ".", [40]),
        ("It costs 1.05 times, e.g. at batch 8.", [8]),
    ],
)
def test_words_are_counted_by_sentence(text: str, counts: list[int]) -> None:
    assert [words(each) for each in sentences(text) if words(each)] == counts
