"""The differences between two bundles: contract, variants, graphs, golden cases, evidence."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from edgeport_runtime import Bundle
from edgeport_runtime.manifest import Variant

PLANNED = ("target", "method", "integer", "calibration_images", "calibration_sha256")  # of an int8 plan; the rest follows, or was measured
MEASURED = ("quality", "parity")  # of the evidence; speed and machine differ between any two exports


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One fact that the two bundles do not share; empty text if one of them does not have it."""

    what: str
    first: str
    second: str


def diff_bundles(first: Bundle, second: Bundle) -> list[Difference]:
    """Every difference, from the contract down to the graphs' operators. Raises AlteredError if a file is not what its manifest says."""
    left, right = dict(_facts(first)), dict(_facts(second))
    changed = [what for what in dict.fromkeys([*left, *right]) if left.get(what) != right.get(what)]
    return [Difference(what=what, first=left.get(what, ""), second=right.get(what, "")) for what in changed]


def _facts(bundle: Bundle) -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
    yield "name", manifest.name
    yield from _leaves("contract", manifest.contract.to_dict())
    yield from _leaves("auto", asdict(manifest.auto))
    yield from _leaves("provenance", manifest.provenance)
    for variant in manifest.variants:
        yield from _variant_facts(bundle, variant)
    for case in manifest.golden:
        for file in (*case.inputs, *case.outputs):
            yield file.file, file.sha256[:12]
    evidence = bundle.evidence()
    for part in MEASURED:
        yield from _leaves(f"evidence.{part}", _without_cases(evidence.get(part) or {}))


def _variant_facts(bundle: Bundle, variant: Variant) -> Iterator[tuple[str, str]]:
    yield f"{variant.precision}: sha256", variant.sha256[:12]
    yield f"{variant.precision}: bytes", f"{variant.bytes:,}"
    yield f"{variant.precision}: opset, IR", f"{variant.opset}, {variant.ir_version}"
    yield from _leaves(f"{variant.precision}: plan", {key: value for key, value in (variant.plan or {}).items() if key in PLANNED})
    graph = onnx.load_from_string(bundle.read(variant)).graph
    for operator, count in sorted(Counter(node.op_type for node in graph.node).items()):
        yield f"{variant.precision}: {operator} nodes", str(count)


def _without_cases(evidence: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _without_cases(value) if isinstance(value, Mapping) else value for key, value in evidence.items() if key != "cases"}


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every innermost value of nested mappings, with its path."""
    if isinstance(value, Mapping):
        for key in value:
            yield from _leaves(f"{path}.{key}", value[key])
    else:
        yield path, str(value)
