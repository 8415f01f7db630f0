"""The documents keep their word: their Python runs and prints what they say, commands and links exist, generated pages are up to date."""

import importlib.util
import json
import re
import runpy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgeport_export.cli.app import main as edgeport
from edgeport_export.network.preflight import preflight
from edgeport_runtime import Contract, ContractError
from edgeport_runtime.cli import build_parser

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
LONG = {"README.md", "quantization.md", "parity.md", "recipes.md"}  # each exports a whole network
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.S | re.M)
MARK = "--- next block ---"


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every code block."""
    return [(found[1], found[2]) for found in BLOCK.finditer(text)]


def python_blocks(text: str) -> list[tuple[str, str | None]]:
    """Every block of Python, and the output below it; None if the page shows none."""
    listed = blocks(text)
    follows = re.compile(r"```python\n.*?^```\n```\n", flags=re.S | re.M)
    shown = {found[0].removesuffix("```\n").strip() for found in follows.finditer(text)}
    found = []
    for index, (language, content) in enumerate(listed):
        if language == "python":
            below = f"```python\n{content}```" in shown
            found.append((content, listed[index + 1][1] if below else None))
    return found


def with_python() -> list[Any]:
    names = [name for name, path in PAGES.items() if python_blocks(path.read_text())]
    return [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in names]


@pytest.mark.parametrize("name", with_python())
def test_python_runs_and_prints_what_the_page_shows(
    name: str,
    checkpoint: Path,
    fix_latencies: Callable[[pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All blocks of a page one after the other, in an own folder that holds the examples, a checkpoint and a folder of images.

    How fast variants are is given, and not measured, as in all tests.
    """
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "manifest.schema.json", tmp_path / "docs")
    shutil.copy(checkpoint, tmp_path / "cnn.safetensors")
    (tmp_path / "images").mkdir()
    for index in range(24):
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (80, 96, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{index}.png")
    parts = python_blocks(PAGES[name].read_text())
    code = f"\nprint({MARK!r})\n".join(content for content, _ in parts)
    (tmp_path / "page.py").write_text(code)
    fix_latencies(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    capsys.readouterr()
    runpy.run_path("page.py", run_name="__main__")
    printed = capsys.readouterr().out.split(f"{MARK}\n")
    assert len(printed) == len(parts)
    for got, (content, expected) in zip(printed, parts, strict=True):
        assert expected is None or got == expected, content


def test_a_page_that_shows_something_else_would_be_found() -> None:
    page = "```python\nprint(1)\n```\n```\n2\n```\n\nwords\n\n```python\nprint(3)\n```\n\n```\nno output\n```\n"
    assert python_blocks(page) == [("print(1)\n", "2\n"), ("print(3)\n", None)]


def test_the_readme_is_a_door() -> None:
    assert (ROOT / "README.md").read_text().count("\n") <= 120


def test_the_contract_in_json_is_one_that_a_network_keeps() -> None:
    """The JSON is read, and a network of that shape passes under it."""
    (text,) = [content for language, content in blocks(PAGES["export.md"].read_text()) if language == "json"]

    class Scored(nn.Module):
        def forward(self, signal: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.stack([(signal * mask[:, None]).mean((1, 2)), signal.amax((1, 2))], 1)

    contract = Contract.from_json(text)
    preflight(Scored(), contract)
    with pytest.raises(ContractError, match="does not say what the network gives"):
        preflight(Scored(), replace(contract, outputs=(replace(contract.outputs[0], shape=("batch", 3)),)))


def commands(program: str) -> list[tuple[str, list[str]]]:
    """Every call of a program in the documents: the subcommand, and the options that it is given."""
    shell = "\n".join(content for path in PAGES.values() for language, content in blocks(path.read_text()) if not language).replace("\\\n", " ")
    return [(found[1], re.findall(r"(--[a-z-]+)", found[0])) for found in re.finditer(rf"^{program} ((?:deploy )?\w+)[^\n#]*", shell, flags=re.M)]


def test_the_commands_and_their_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands("edgeport") and commands("edgeport-run")
    for command, options in commands("edgeport"):
        edgeport([*command.split(), "--help"])
        helped = capsys.readouterr().out
        assert all(option in helped for option in options), (command, options)
    for command, options in commands("edgeport-run"):
        with pytest.raises(SystemExit):
            build_parser().parse_args([command, "--help"])
        helped = capsys.readouterr().out
        assert all(option in helped for option in options), (command, options)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    named = {found for path in (*PAGES.values(), ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md") for found in re.findall(r"`make ([\w-]+)`", path.read_text())}
    assert named and named <= set(targets), named - set(targets)


def names_on_the_map(text: str) -> set[str]:
    """Modules and packages, as the tree lists them: everything before the words that explain a line."""
    tree = next(content for _, content in blocks(text) if "edgeport_runtime/" in content)
    return {name.strip("/") for line in tree.splitlines() for name in re.split(r" {3,}", line.strip(), maxsplit=1)[0].split()}


def names_of_modules() -> set[str]:
    """The top level of each distribution: modules and packages."""
    parts = [path for part in ("runtime", "models", "export") for path in (ROOT / part / f"edgeport_{part}").iterdir()]
    return {path.stem for path in parts if (path.suffix == ".py" or (path / "__init__.py").exists()) and not path.name.startswith("__")}


MAP = PAGES["architecture.md"].read_text()


def test_the_map_is_the_layout() -> None:
    the_map = names_on_the_map(MAP)
    parts = {"runtime/edgeport_runtime", "models/edgeport_models", "export/edgeport_export", "tests"}
    assert names_of_modules() == the_map - parts, {"missing": names_of_modules() - the_map, "gone": the_map - parts - names_of_modules()}


@pytest.mark.parametrize("change", [lambda text: text.replace("    pipeline", "    pipework"), lambda text: text.replace("    request", "")])
def test_a_map_that_is_wrong_would_be_found(change: Callable[[str], str]) -> None:
    assert names_of_modules() - names_on_the_map(change(MAP))


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md", "AGENTS.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    path = PAGES.get(name, ROOT / name)
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    assert all(link.startswith("https://") or (path.parent / link).exists() for link in links), links


@pytest.mark.parametrize("name", ["cli.md", "api.md", "rewrites.md"])
def test_generated_pages_are_up_to_date(name: str) -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert PAGES[name].read_text() == module.PAGES[name](), "run: python docs/generate.py"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert all(name in navigation for name in PAGES if name != "README.md")


def test_the_example_bundle_is_small() -> None:
    files = [path for path in (ROOT / "examples").rglob("*") if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts]
    assert 20_000 < sum(path.stat().st_size for path in files) < 300_000
    assert json.loads((ROOT / "examples" / "digits" / "manifest.json").read_text())["format"] == 2
