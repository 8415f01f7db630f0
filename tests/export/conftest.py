"""Small networks that export in a second or two."""

import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from edgeport_export import export_bundle
from edgeport_export.network.reference import TorchReference
from edgeport_export.quantization.calibration import calibrate
from edgeport_export.quantization.qdq import observed_values, quantize
from edgeport_export.quantization.targets import TARGETS
from edgeport_export.quantization.variants import QuantizableGraph
from edgeport_export.rewrites.finalize import finalize
from edgeport_export.tracing.exporter import Traced, trace
from edgeport_export.validation.parity import Parity
from edgeport_export.validation.sweep import full_sweep, measure_parity
from edgeport_runtime import Contract, Example, Pixels, SessionOptions
from edgeport_runtime.axes import image_axes
from edgeport_runtime.contract import classification, image_to_image
from edgeport_runtime.device import open_session

STORED = Path(__file__).parents[1] / "fixtures"
torch.manual_seed(0)  # for networks that tables of cases make while they are collected


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before every test and before the fixtures it is the first to ask for: the same weights in every run, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The networks and examples of the stored bundles."""
    spec = importlib.util.spec_from_file_location("make_fixtures", STORED / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def class_contract() -> Contract:
    return classification(
        Pixels(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3), ("dark", "middle", "bright"), image_axes(smallest_px=4, largest_px=64, largest_batch=8)
    )


@pytest.fixture(scope="session")
def image_contract() -> Contract:
    return image_to_image(
        Pixels(height=16, width=16, resize="keep", mean=(0.5,) * 3, std=(0.5,) * 3), image_axes(smallest_px=4, largest_px=64, largest_batch=8)
    )


@pytest.fixture(scope="session")
def quantizable() -> Callable[..., QuantizableGraph]:
    """A network's float graph, preprocessed for a target."""

    def traced(network: nn.Module, contract: Contract, target: str = "x86-vnni") -> QuantizableGraph:
        return QuantizableGraph.of(trace(network.eval(), contract).model, contract, TARGETS[target])

    return traced


@pytest.fixture(scope="session")
def swept() -> Callable[[nn.Module, Contract], tuple[Traced, Parity]]:
    """A network's graph, and its parity over the whole sweep, guards included."""

    def compared(network: nn.Module, contract: Contract) -> tuple[Traced, Parity]:
        reference, traced = TorchReference(network, contract), trace(network.eval(), contract)
        return traced, measure_parity(reference, finalize(traced.model, contract), sizes=full_sweep(reference, traced.guards))

    return compared


@pytest.fixture(scope="session")
def all_integer() -> Callable[[QuantizableGraph, Sequence[Example]], onnx.ModelProto]:
    """The variant in which every product runs as integers, calibrated with the examples."""

    def made(graph: QuantizableGraph, examples: Sequence[Example]) -> onnx.ModelProto:
        ranges = calibrate(graph.model, observed_values(graph.model, graph.target), graph.contract, examples).ranges("minmax")
        return quantize(graph.model, graph.contract, frozenset(graph.quantizable), ranges, graph.target)

    return made


@pytest.fixture(scope="session")
def run_first() -> Callable[[bytes, np.ndarray], np.ndarray]:
    """A model's first output for pixels."""
    return lambda model, pixels: np.asarray(open_session(model, SessionOptions()).run(None, {"pixels": pixels})[0])


@pytest.fixture
def integer_kernels(
    tiny: ModuleType,
    class_contract: Contract,
    quantizable: Callable[..., QuantizableGraph],
    all_integer: Callable[..., onnx.ModelProto],
    run_first: Callable[..., np.ndarray],
    tmp_path: Path,
) -> "Callable[[type[nn.Module]], Counter[str]]":
    """How often which operator runs once every product of a classifier is an integer one, after it was seen to stay near fp32."""

    def kinds(network: type[nn.Module]) -> "Counter[str]":
        torch.manual_seed(0)
        graph = quantizable(network(), class_contract)
        fp32, int8 = (finalize(each, class_contract) for each in (graph.model, all_integer(graph, tiny.brightness_examples(24, seed=5))))
        pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
        exact, near = run_first(fp32, pixels), run_first(int8, pixels)
        assert not np.array_equal(exact, near) and np.abs(exact - near).max() < 0.05 * np.ptp(exact)
        settings = onnxruntime.SessionOptions()
        settings.optimized_model_filepath, settings.log_severity_level = str(tmp_path / "optimized.onnx"), 3
        onnxruntime.InferenceSession(int8, settings, providers=["CPUExecutionProvider"])
        nodes = list(onnx.load(tmp_path / "optimized.onnx").graph.node)
        nodes += [each for node in nodes for branch in node.attribute if branch.name == "then_branch" for each in branch.g.node]
        return Counter(node.op_type for node in nodes)

    return kinds


@pytest.fixture
def fixed_latencies(fix_latencies: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is measured by `make bench`, not by tests: here int8 takes half as long, every integer product pays, and no process is started."""
    fix_latencies(monkeypatch)


@pytest.fixture(scope="session")
def make_bundle(tiny: ModuleType, class_contract: Contract) -> Callable[..., Path]:
    """Exports the tiny classifier, with 24 images to calibrate with and to judge on, if nothing else is given."""

    def make(out: Path, **changes: Any) -> Path:
        examples = tiny.brightness_examples(24, seed=2)
        given = {"network": tiny.trained_classifier(), "contract": class_contract, "name": "tiny", "calibration": examples, "held_out": examples}
        return export_bundle(out=out, **{**given, **changes}).folder

    return make


@pytest.fixture(scope="session")
def tiny_bundle(fix_latencies: Callable[[pytest.MonkeyPatch], None], make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny classifier's bundle, to look at."""
    with pytest.MonkeyPatch.context() as patch:
        fix_latencies(patch)
        return make_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="session")
def promised() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a bundle whose bytes follow from checkpoint, options and plan: all but the evidence."""

    def files(bundle: Path) -> dict[str, bytes]:
        return {str(p.relative_to(bundle)): p.read_bytes() for p in sorted(bundle.rglob("*")) if p.is_file() and p.name != "evidence.json"}

    return files
