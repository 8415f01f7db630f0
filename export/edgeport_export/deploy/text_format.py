"""Protobuf's text format, as far as configurations are written in it: `key: value`, `key { … }`, `key: [ a, b ]`, comments.

https://protobuf.dev/reference/protobuf/textformat-spec/
"""

import json
import re
from collections.abc import Iterator
from typing import Any

Block = dict[str, list[Any]]  # each key's values in their order: text, whole numbers, other numbers, blocks; names of an enum are texts
SPACE = re.compile(r"(?:\s|#[^\n]*)*")
TOKEN = re.compile(r"""\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|[-+\w./]+|[{}\[\]<>:,;]""")
DEEPEST = 20


class TextFormatError(ValueError):
    """The text is not in protobuf's text format."""


def quoted(text: str) -> str:
    """As a string of the text format: JSON's escapes are among its own."""
    return json.dumps(text)


def read_blocks(text: str) -> Block:
    """Raises TextFormatError with the place of the fault."""
    return _Reader(list(_tokens(text))).block("", 0)


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    """With the lines that they are on."""
    at, line = 0, 1
    while (start := _past_space(text, at)) < len(text):
        line += text.count("\n", at, start)
        found = TOKEN.match(text, start)
        if found is None:
            raise TextFormatError(f"line {line}: not protobuf's text format: {text[start : start + 20].strip()!r}")
        yield found[0], line
        at = found.end()


def _past_space(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return at if found is None else found.end()


class _Reader:
    def __init__(self, tokens: list[tuple[str, int]]) -> None:
        self.tokens, self.at = tokens, 0

    def peek(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def fail(self, expected: str) -> TextFormatError:
        line = self.tokens[min(self.at, len(self.tokens)) - 1][1] if self.tokens else 1
        return TextFormatError(f"line {line}: expected {expected}")

    def block(self, end: str, depth: int) -> Block:
        if depth > DEEPEST:
            raise self.fail("fewer blocks within each other")
        found: Block = {}
        while self.peek() != end:
            key = self.take()
            if not re.fullmatch(r"[A-Za-z_]\w*", key):
                raise self.fail(f"a name, or {end!r}" if end else "a name")
            colon = self.peek() == ":"
            if colon:
                self.take()
            found.setdefault(key, []).extend(self.values(depth, colon=colon))
            if self.peek() in (",", ";"):
                self.take()
        self.take()
        return found

    def values(self, depth: int, *, colon: bool) -> list[Any]:
        if self.peek() != "[":
            return [self.value(depth, colon=colon)]
        self.take()
        found = []
        while self.peek() != "]":
            found.append(self.value(depth, colon=colon))
            if self.peek() == ",":
                self.take()
            elif self.peek() != "]":
                raise self.fail("',' or ']'")
        self.take()
        return found

    def value(self, depth: int, *, colon: bool) -> Any:
        token = self.take()
        if token in ("{", "<"):
            return self.block("}" if token == "{" else ">", depth + 1)
        if not colon or not token or token in "}]>:,;":
            raise self.fail("a value")
        if token[0] in "\"'":
            return _text(token, self)
        if re.fullmatch(r"[-+]?\d+", token):
            return int(token)
        if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?f?", token):
            return float(token.rstrip("f"))
        return token


def _text(token: str, reader: _Reader) -> str:
    inner = token[1:-1] if token[0] == '"' else token[1:-1].replace('"', '\\"')
    try:
        return str(json.loads(f'"{inner}"'))
    except ValueError:
        raise reader.fail(f"a text, got {token}") from None
