"""Write the pages that follow from the code: docs/cli.md, docs/api.md and docs/rewrites.md.

    python docs/generate.py

A test compares the pages with what this writes, so they cannot fall behind.
"""

import argparse
import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from edgeport_export.cli.app import app
from edgeport_runtime.cli import build_parser

ROOT = Path(__file__).parents[1]
REWRITES = ROOT / "export" / "edgeport_export" / "rewrites"
KINDS = {
    "translations": "Translations: while tracing, an aten operator becomes ONNX",
    "float_graph": "Passes over the float graph, which compute the same function as exactly or more so",
    "int8_graph": "Passes that let integer kernels run",
}
PACKAGES = {
    "edgeport_runtime": "The device: `edgeport_runtime`",
    "edgeport_export": "The host: `edgeport_export`",
    "edgeport_models": "Networks and data to start from: `edgeport_models`",
}
HEAD = "<!-- Written by docs/generate.py. -->\n"


def cli() -> str:
    """Both command lines, every command with its arguments and options."""
    lines = [
        HEAD,
        "# Command line",
        "",
        "`edgeport` is the host's, `edgeport-run` the device's. Exit codes: 0 good, 1 a comparison failed, 2 wrong use or input, 130 interrupted.",
    ]
    for name, command in _commands("edgeport", typer.main.get_command(app)):
        lines += ["", f"## {name}", "", *_table(command.help, _host_options(command))]
    for name, parser in next(each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction)).choices.items():
        lines += ["", f"## edgeport-run {name}", "", *_table(_sentence(parser.description), _device_options(parser))]
    return "\n".join(lines) + "\n"


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Those of a group one by one."""
    for each, inner in command.commands.items():
        yield from _commands(f"{name} {each}", inner) if hasattr(inner, "commands") else [(f"{name} {each}", inner)]


def _table(text: str, options: Iterator[tuple[str, str, str]]) -> list[str]:
    rows = [f"| `{name}` | {default} | {words} |" for name, default, words in options]
    return [text, "", "| | if left out | |", "|---|---|---|", *rows] if rows else [text]


def _host_options(command: Any) -> Iterator[tuple[str, str, str]]:
    for each in command.params:
        argument = each.param_type_name == "argument"
        name = each.name.upper() if argument else "/".join([*each.opts, *each.secondary_opts])
        default = "required" if each.required else "" if each.default in (None, False) else f"{each.default}"
        yield name, default, _sentence(getattr(each, "help", None))


def _device_options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, str]]:
    for each in parser._actions:
        if isinstance(each, argparse._HelpAction):
            continue
        name = "/".join(each.option_strings) or each.dest.upper()
        default = "required" if each.required else "" if each.default in (None, False) else f"{each.default}"
        yield name, default, _sentence(each.help)


def _sentence(text: str | None) -> str:
    """With a full stop, and the pipes escaped that a table would take for its own."""
    words = (text or "").replace("|", "\\|").strip()
    return f"{words}{'' if words.endswith(('.', '?')) or not words else '.'}"


def api() -> str:
    """A directive for every public name; mkdocstrings puts signature and docstring in its place."""
    lines = [HEAD, "# API", "", "Everything else is internal and may change. Errors derive from `EdgeportError`."]
    for package, title in PACKAGES.items():
        lines += ["", f"## {title}", "", *(f"::: {package}.{name}" for name in importlib.import_module(package).__all__)]
    return "\n".join(lines) + "\n"


def rewrites() -> str:
    """One line for each rewrite: the first sentence of its module."""
    lines = [
        HEAD,
        "# Rewrites",
        "",
        "A rewrite replaces a part of the graph, so that it is right at every size, or so that integer kernels can run. Each is one file in",
        "`export/edgeport_export/rewrites/`, with its rules and the measurement that asked for it in the docstring.",
    ]
    for folder, title in KINDS.items():
        lines += ["", f"## {title}", "", "| | |", "|---|---|"]
        for path in sorted(set((REWRITES / folder).glob("[a-z]*.py")) - {REWRITES / "int8_graph" / "context.py"}):
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            lines.append(f"| `{path.stem}` | {_sentence(' '.join(text.split(chr(10) + chr(10))[0].split()))} |")
    return "\n".join(lines) + "\n"


PAGES = {"cli.md": cli, "api.md": api, "rewrites.md": rewrites}


def main() -> None:
    for name, text in PAGES.items():
        (ROOT / "docs" / name).write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
