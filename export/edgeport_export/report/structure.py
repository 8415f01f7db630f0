"""The network as layers of modules, drawn from the fp32 graph: which of them run as integers, and what each costs.

1. Nodes are named by their modules ("layer1.0.conv1/Conv"). Modules are joined to their parents, the deepest first, until at most MOST are left.
2. A module lies one layer below the lowest one that it reads from. A value that goes back to an earlier module (one that is called twice) is not drawn.
3. Within a layer, modules lie in the order of what they read from.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from textwrap import wrap

import onnx

from edgeport_export.rewrites.graph import GraphEditor
from edgeport_runtime.json_text import printable

from .facts import BundleFacts, Product

MOST = 40  # modules in the drawing
BOX_PX, ROW_PX, GAP_PX, LEFT_PX = (230, 44), 68, 24, 12
LONGEST_LABEL = 30  # characters
LONGEST_LINE, LINE_PX = 34, 16  # characters, and height, of a card with all figures


@dataclass(kw_only=True)
class Module:
    """`path`: of the module, or of several with this beginning. `products`: its convolutions and matrix products. `reads`: modules before it."""

    path: str
    operators: Counter[str] = field(default_factory=Counter)
    products: list[Product] = field(default_factory=list)
    reads: set[str] = field(default_factory=set)

    @property
    def precision(self) -> str:
        """ "integer", "mixed" or "float" products, or "none"."""
        integer = {each.reason is None for each in self.products}
        return "none" if not integer else "mixed" if len(integer) == 2 else "integer" if True in integer else "float"

    @property
    def macs(self) -> int:
        return sum(each.macs for each in self.products)


def modules_of(model: onnx.ModelProto, products: Sequence[Product]) -> list[Module]:
    """Rules 1 and 2, in the graph's order."""
    editor = GraphEditor(model)
    known = {each.name: each for each in products}
    paths = {node.name: node.name.rpartition("/")[0] or node.op_type for node in editor.nodes}
    joined = _joined(list(paths.values()))
    found: dict[str, Module] = {}
    made: dict[str, str] = {}
    for node in editor.nodes:
        path = joined[paths[node.name]]
        module = found.setdefault(path, Module(path=path))
        module.operators[node.op_type] += 1
        if node.name in known:
            module.products.append(known[node.name])
        module.reads |= {made[name] for name in node.input if name in made} - {path}
        made |= dict.fromkeys(node.output, path)
    order = {path: place for place, path in enumerate(found)}
    for module in found.values():
        module.reads = {path for path in module.reads if order[path] < order[module.path]}
    return list(found.values())


def _joined(paths: Sequence[str]) -> Mapping[str, str]:
    """What each path is drawn as."""
    shown = dict(zip(paths, paths, strict=True))
    while len(set(shown.values())) > MOST:
        depth = max(each.count(".") for each in shown.values())
        if depth == 0:
            break
        shown = {path: each.rpartition(".")[0] if each.count(".") == depth else each for path, each in shown.items()}
    return shown


def layers_of(modules: Sequence[Module]) -> list[list[Module]]:
    """Rules 2 and 3."""
    layer: dict[str, int] = {}
    for module in modules:
        layer[module.path] = 1 + max((layer[path] for path in module.reads), default=-1)
    rows: list[list[Module]] = [[] for _ in range(1 + max(layer.values(), default=-1))]
    for module in modules:
        rows[layer[module.path]].append(module)
    place: dict[str, float] = {}
    for row in rows:
        row.sort(key=lambda module: sum(place[path] for path in module.reads) / max(1, len(module.reads)))
        place |= {module.path: index for index, module in enumerate(row)}
    return rows


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """`svg`: each module shows its figures if it is pointed at or focused. `says`: in words. `modules`: for the table below it."""

    svg: str
    says: str
    modules: tuple[Module, ...]


def structure(facts: BundleFacts) -> Drawing | None:
    """None if the bundle has no fp32 variant."""
    variants = [each for each in facts.manifest.variants if each.precision == "fp32"]
    if not variants:
        return None
    modules = modules_of(onnx.load_from_string(facts.bundle.read(variants[0])), facts.products)
    rows = layers_of(modules)
    if not rows:
        return None
    says = f"{len(modules)} modules in {len(rows)} layers, from the input at the top to the output at the bottom."
    return Drawing(svg=_svg(rows, says, facts.key), says=says, modules=tuple(modules))


def _svg(rows: Sequence[Sequence[Module]], says: str, key: str) -> str:
    width = LEFT_PX * 2 + max(map(len, rows)) * (BOX_PX[0] + GAP_PX) - GAP_PX
    height = max(2, len(rows)) * ROW_PX + LEFT_PX
    corner = {module.path: _corner(index, layer) for layer, row in enumerate(rows) for index, module in enumerate(row)}
    total = sum(module.macs for row in rows for module in row)
    lines = [_line(corner[path], corner[module.path]) for row in rows for module in row for path in sorted(module.reads)]
    modules = [module for row in rows for module in row]
    boxes = [_box(f"{key}-module-{number}", module, corner[module.path], total) for number, module in enumerate(modules)]
    cards = [_card(f"{key}-card-{number}", module, corner[module.path], total, height) for number, module in enumerate(modules)]
    shown = ",".join(f"#{key}-module-{number}:{how}~#{key}-card-{number}" for number in range(len(modules)) for how in ("hover", "focus"))
    opened = f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="group" aria-labelledby="{key}-structure-says">'
    style = f"<style>{shown}{{display:inline}}</style>"
    return printable(f'{opened}<title id="{key}-structure-says">{escape(says)}</title>{style}{"".join(lines)}{"".join(boxes)}{"".join(cards)}</svg>')


def _corner(index: int, layer: int) -> tuple[float, float]:
    """From the left, where a narrow screen begins."""
    return LEFT_PX + index * (BOX_PX[0] + GAP_PX), LEFT_PX + layer * ROW_PX


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    """From the bottom of one box to the top of another, bent if it passes boxes in between."""
    (x1, y1), (x2, y2) = (start[0] + BOX_PX[0] / 2, start[1] + BOX_PX[1]), (end[0] + BOX_PX[0] / 2, end[1])
    far = y2 - y1 > ROW_PX
    out = BOX_PX[0] / 2 + GAP_PX / 2 if far else 0
    return f'<path class="edge" d="M{x1:g} {y1:g} C{x1 + out:g} {y1 + 12:g} {x2 + out:g} {y2 - 12:g} {x2:g} {y2:g}"/>'


def _box(key: str, module: Module, corner: tuple[float, float], total: int) -> str:
    label = module.path if len(module.path) <= LONGEST_LABEL else "…" + module.path[1 - LONGEST_LABEL :]
    told = escape(description(module, total))
    rectangle = f'<rect x="{corner[0]:g}" y="{corner[1]:g}" width="{BOX_PX[0]}" height="{BOX_PX[1]}" rx="6"/>'
    middle = f'x="{corner[0] + BOX_PX[0] / 2:g}" text-anchor="middle"'
    text = f'<text {middle} y="{corner[1] + 18:g}">{escape(label)}</text>'
    text += f'<text {middle} y="{corner[1] + 35:g}" class="figures">{escape(figures(module, total))}</text>'
    return f'<g id="{key}" class="module {module.precision}" tabindex="0" role="img" aria-label="{told}">{rectangle}{text}</g>'


def _card(key: str, module: Module, corner: tuple[float, float], total: int, height: float) -> str:
    """All figures of a module, below it or above it. It is shown while one points at the module or has it in focus; a screen reader has read them already."""
    lines = [line for part in facts_of(module, total) for line in wrap(part, LONGEST_LINE, break_long_words=True)]
    tall = len(lines) * LINE_PX + 10
    below = corner[1] + BOX_PX[1] + 3
    top = below if below + tall <= height else max(0.0, corner[1] - 3 - tall)
    rectangle = f'<rect x="{corner[0]:g}" y="{top:g}" width="{BOX_PX[0]}" height="{tall:g}" rx="6"/>'
    text = "".join(f'<text x="{corner[0] + 10:g}" y="{top + (index + 1) * LINE_PX:g}">{escape(line)}</text>' for index, line in enumerate(lines))
    return f'<g id="{key}" class="card" aria-hidden="true">{rectangle}{text}</g>'


WORDS = {"integer": "integers", "mixed": "partly integers", "float": "float", "none": "no products"}


def figures(module: Module, total: int) -> str:
    """What is written into its box: its share of the MACs and its error, or its operators."""
    if not module.macs:
        return _operators(module, 2)
    errors = [f"{least:.1f} dB"] if (least := _least_db(module)) is not None else []
    return ", ".join([f"{100 * module.macs / total:.1f} % of MACs", *errors])


def description(module: Module, total: int) -> str:
    """One module in a line of words. `total`: MACs of the network."""
    return "; ".join(facts_of(module, total))


def facts_of(module: Module, total: int) -> list[str]:
    """Its name, and what is known of it."""
    parts = [module.path, WORDS[module.precision]]
    if module.macs:
        parts.append(f"{module.macs:,} MACs ({100 * module.macs / total:.1f} %)")
    if (least := _least_db(module)) is not None:
        parts.append(f"{least:.1f} dB if alone integer")
    if len(module.products) == 1 and module.products[0].speedup is not None:
        parts.append(f"{module.products[0].speedup:.3g} times as fast with it as integers")
    return [*parts, _operators(module, 4)]


def _least_db(module: Module) -> float | None:
    return min((each.sqnr_db for each in module.products if each.sqnr_db is not None), default=None)


def _operators(module: Module, most: int) -> str:
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in module.operators.most_common(most))
