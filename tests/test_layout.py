"""The layout and its words: where a module and its test stand, how long they may be, and which names are gone."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest

from edgeport_export.rewrites.float_graph import FLOAT_PASSES
from edgeport_export.rewrites.float_graph.exact_kernels import exact_kernels
from edgeport_export.rewrites.float_graph.precise_mean import precise_mean
from edgeport_export.rewrites.float_graph.precise_norm import precise_norm
from edgeport_export.rewrites.float_graph.prelu import prelu
from edgeport_export.rewrites.float_graph.stored_constants import stored_constants
from edgeport_export.rewrites.graph import PassResult
from edgeport_export.rewrites.int8_graph import FOLLOWER_PASSES, GUARDS, QDQ_PASSES, SHAPING_PASSES, X86_PASSES

ROOT = Path(__file__).parents[1]
PACKAGES = {"runtime": "edgeport_runtime", "models": "edgeport_models", "export": "edgeport_export"}
ASSETS = "assets"  # what a module copies into folders, for other programs
MODULES = {
    f"{part}/{path.relative_to(ROOT / part / name)}": path
    for part, name in PACKAGES.items()
    for path in sorted((ROOT / part / name).rglob("*.py"))
    if path.parent.name != ASSETS
}
LARGEST_MODULE, LARGEST_BODY, LARGEST_PIPELINE = 300, 40, 20
# Values and names alone: there is nothing in them that could be wrong by itself.
WITHOUT_LOGIC = {"runtime/__main__.py", "export/__main__.py", "models/errors.py", "export/errors.py", "export/quantization/budget.py"}


def test_every_module_has_a_test_of_its_name_and_every_test_a_module() -> None:
    wanted = {module for module in MODULES if not module.endswith("__init__.py")} - WITHOUT_LOGIC
    tested = {
        f"{path.relative_to(ROOT / 'tests').parent}/{path.name.removeprefix('test_')}"
        for part in PACKAGES
        for path in (ROOT / "tests" / part).rglob("test_*.py")
    }
    assert tested == wanted, {"without a test": sorted(wanted - tested), "without a module": sorted(tested - wanted)}
    assert not WITHOUT_LOGIC - set(MODULES)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return max(each.end_lineno or 0 for each in body) - body[0].lineno + 1 if body else 0


def test_modules_and_functions_stay_small() -> None:
    large = [f"{module}: {lines} lines" for module, path in MODULES.items() if (lines := path.read_text().count("\n")) > LARGEST_MODULE]
    for module, path in MODULES.items():
        large += [
            f"{module}:{each.lineno} {each.name}: {size} lines" for each in functions(ast.parse(path.read_text())) if (size := body_lines(each)) > LARGEST_BODY
        ]
    assert not large, large


def test_the_export_reads_as_its_own_summary() -> None:
    pipeline = {each.name: each for each in functions(ast.parse(MODULES["export/pipeline.py"].read_text()))}
    assert body_lines(pipeline["export_bundle"]) <= LARGEST_PIPELINE


@pytest.mark.parametrize("part", [*PACKAGES, "tests"])
def test_no_part_is_a_package_of_its_own(part: str) -> None:
    assert not (ROOT / part / "__init__.py").exists()  # `import models` would collide with every application


@pytest.mark.parametrize("name", ["utils", "helpers", "common", "misc"])
def test_no_module_is_a_place_for_anything(name: str) -> None:
    assert not [module for module in MODULES if Path(module).stem == name]


def imports(name: str, path: Path) -> set[str]:
    """The modules that a module imports while it is itself imported: not those inside functions, nor for type checkers."""
    package, found = name if path.name == "__init__.py" else name.rpartition(".")[0], set()
    statements = list(ast.parse(path.read_text()).body)
    while statements:
        node = statements.pop()
        if isinstance(node, ast.If | ast.Try) and "TYPE_CHECKING" not in ast.dump(node):
            statements += [*node.body, *node.orelse]
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [node.module])]) if node.level else node.module or ""
            )
            found |= {base, *(f"{base}.{each.name}" for each in node.names)}
    return found


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that can be reached from themselves."""

    def reached(name: str) -> set[str]:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            more = graph.get(waiting.pop(), set()) - seen
            seen |= more
            waiting += more
        return seen

    return [name for name in graph if name in reached(name)]


def dotted(module: str) -> str:
    part, _, rest = module.partition("/")
    return ".".join([PACKAGES[part], *Path(rest).with_suffix("").parts]).removesuffix(".__init__")


def test_no_module_imports_itself_by_a_detour() -> None:
    names = {dotted(module) for module in MODULES}
    # a package is entered by each of its modules, so only what its modules import counts
    graph = {dotted(module): imports(dotted(module), path) & names for module, path in MODULES.items() if not module.endswith("__init__.py")}
    assert len(graph) > 100 and sum(map(len, graph.values())) > 300 and circles(graph) == []
    assert circles({**graph, "edgeport_runtime.errors": {"edgeport_runtime.model"}})  # which would be one


def passes() -> list[object]:
    last = (exact_kernels, precise_mean, precise_norm, prelu, stored_constants)
    return [*FLOAT_PASSES, *last, *SHAPING_PASSES, *FOLLOWER_PASSES, *QDQ_PASSES, *X86_PASSES, *GUARDS]


@pytest.mark.parametrize("one_pass", passes(), ids=lambda each: each.__name__)
def test_every_pass_returns_a_result(one_pass: object) -> None:
    assert get_type_hints(one_pass)["return"] is PassResult


def test_every_module_of_passes_is_in_a_list() -> None:
    listed = {each.__module__.rpartition(".")[2] for each in passes()}  # type: ignore[attr-defined]
    found = {Path(module).stem for module in MODULES if re.match(r"export/rewrites/(float|int8)_graph/[a-z]", module)}
    assert found - listed == {"context"}


PARTS_OF_A_GRAPH = {"node", "nodes", "output", "input", "initializer", "value_info"}


def surgery(source: str) -> list[int]:
    """Lines that insert into or remove from a list called like a part of a graph, or delete some of it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("insert", "remove", "pop"):
            found += [node.lineno] if last_name(node.func.value) in PARTS_OF_A_GRAPH else []
        if isinstance(node, ast.Delete):
            found += [node.lineno for each in node.targets if isinstance(each, ast.Subscript) and last_name(each.value) in PARTS_OF_A_GRAPH]
    return found


def last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_graphs_are_changed_by_the_editor_alone() -> None:
    found = [module for module, path in MODULES.items() if module.startswith("export/") and surgery(path.read_text())]
    assert found == ["export/rewrites/graph.py"]


@pytest.mark.parametrize(
    "line", ["graph.node.insert(0, x)", "nodes = model.graph.node; nodes.remove(last)", "del graph.node[3]", "made.graph.initializer.pop()"]
)
def test_surgery_elsewhere_would_be_found(line: str) -> None:
    assert surgery(line) and not surgery("editor.remove([node])")


# Words of an earlier, private vocabulary. The changelog may name them, and so may a script that reads checkouts of before.
OLD_WORDS = (
    *("askers", "offers", "Jury", "Judgement", "Workshop", "shop", "Contender", "Heat", "Stopwatch", "yardstick", "Crew", "Said", "insist", "unfit"),
    *("verdict", "the house", "room"),
)
BRITISH = (  # `cancelled()` and `CancelledError` are names of asyncio
    *(r"\w+isations?", r"(normal|quant|optim|initial|dequant|recogn|organ|summar|general|special|synchron|util|minim|maxim)is(e|es|ed|er|ers|ing)"),
    *(r"(re)?colour\w*", "grey", "greyscale", "centre", "centred", "neighbours?", "neighbouring", "behaviours?"),
    *("favour", "judgements?", "labelled", "labelling", r"cancelled(?!\(\)| ?Error)", "modelled", "travelled", "catalogue", "licence"),
)
SUFFIXES = (".py", ".md", ".toml", ".typed", "")
WORDS_MAY_STAND_IN = ("CHANGELOG.md", "runtime/LICENSE", "tests/test_layout.py", "tests/bench/compare_checkouts.py")


def texts() -> dict[str, str]:
    """Every text of the project, stored bundles excepted."""
    folders = [path for part in (*PACKAGES, "tests", "docs", ".ci") for path in sorted((ROOT / part).rglob("*"))]
    texts = {str(path.relative_to(ROOT)): path for path in (*ROOT.glob("*.*"), ROOT / "Makefile", *folders) if path.suffix in SUFFIXES and path.is_file()}
    return {name: path.read_text() for name, path in texts.items() if name not in WORDS_MAY_STAND_IN and not name.startswith("tests/fixtures/format")}


def places(pattern: str) -> list[str]:
    compiled = re.compile(pattern, flags=re.I)
    return [
        f"{path}:{number} {match[0]}"
        for path, text in texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        for match in compiled.finditer(split_names(line))
    ]


def split_names(text: str) -> str:
    """SpeedWorkshop as Speed Workshop, so that the parts of a class's name are words, too."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)


def pattern(word: str) -> str:
    """The word by itself or as a part of an identifier, singular or plural."""
    return rf"(?<![a-z]){word.removesuffix('s')}(s|ed|ing)?(?![a-z])"


@pytest.mark.parametrize("word", OLD_WORDS)
def test_old_words_are_gone(word: str) -> None:
    found = places(pattern(word))
    assert len(texts()) > 250 and not found, found


def test_spelling_is_american() -> None:
    found = places(rf"(?<![a-z])({'|'.join(BRITISH)})(?![a-z])")
    assert not found, found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("the workshop", True),
        ("class Workshop:", True),
        ("from .workshop import build", True),
        ("_workshops = []", True),
        ("WORKSHOP = 1", True),
        ("class SpeedWorkshop:", True),
        ("WorkshopText", True),
        ("workshopper", False),
        ("sweatshop", False),
    ],
)
def test_a_word_that_came_back_would_be_found(text: str, found: bool) -> None:
    assert bool(re.search(pattern("Workshop"), split_names(text), flags=re.I)) == found


def test_no_task_is_named_outside_its_module() -> None:
    """What depends on a task is asked of the task. The contract's two builders and the command line's default name one."""
    compared = re.compile(r"task\w* *[=!]= *\"|\" *[=!]= *\w*\.?task")
    assert not [module for module, path in MODULES.items() if compared.search(path.read_text())]
    assert compared.search('if contract.task == "classification":')
