"""Small networks that export in a second or two, and one trained checkpoint."""

import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from edgeport_export.calibration import calibrate
from edgeport_export.progress import unwatched
from edgeport_export.quantize import candidates, observed_values, preprocess, quantize
from edgeport_export.race import DATA_PARALLEL, Heat
from edgeport_export.targets import TARGETS
from edgeport_export.trace import finish, trace
from edgeport_export.training_job import TrainingJob, run_training
from edgeport_runtime import Contract, Pixels, SessionOptions
from edgeport_runtime.contract import classification, image_axes, image_to_image
from edgeport_runtime.device import open_session

STORED = Path(__file__).parents[1] / "fixtures"
torch.manual_seed(0)  # for networks that tables of cases make while they are collected


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before every test and before the fixtures it is the first to ask for: the same weights in every run, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The networks and examples behind the stored bundles."""
    spec = importlib.util.spec_from_file_location("make_fixtures", STORED / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def class_contract() -> Contract:
    return classification(Pixels(height=16, width=16), ("dark", "middle", "bright"), image_axes(smallest_px=4, largest_px=64, largest_batch=8))


@pytest.fixture(scope="session")
def image_contract() -> Contract:
    return image_to_image(Pixels(height=16, width=16, resize="keep"), image_axes(smallest_px=4, largest_px=64, largest_batch=8))


@pytest.fixture
def integer_kernels(tiny: ModuleType, class_contract: Contract, tmp_path: Path) -> "Callable[[type[nn.Module]], Counter[str]]":
    """How often which operator runs once every product of a classifier is an integer one, after it was seen to stay near fp32."""

    def kinds(network: type[nn.Module]) -> "Counter[str]":
        torch.manual_seed(0)
        prepared, vnni = preprocess(trace(network().eval(), class_contract).model), TARGETS["x86-vnni"]
        limits = calibrate(prepared, observed_values(prepared, vnni), class_contract, tiny.brightness_examples(24, seed=5)).limits("minmax")
        made = quantize(prepared, class_contract, set(candidates(prepared, vnni)[0]), limits, vnni)
        models = finish(prepared, class_contract), finish(made, class_contract)
        pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
        exact, near = (np.asarray(open_session(model, SessionOptions()).run(None, {"pixels": pixels})[0]) for model in models)
        assert not np.array_equal(exact, near) and np.abs(exact - near).max() < 0.05 * np.ptp(exact)
        settings = onnxruntime.SessionOptions()
        settings.optimized_model_filepath, settings.log_severity_level = str(tmp_path / "optimised.onnx"), 3
        onnxruntime.InferenceSession(models[1], settings, providers=["CPUExecutionProvider"])
        nodes = list(onnx.load(tmp_path / "optimised.onnx").graph.node)
        nodes += [each for node in nodes for branch in node.attribute if branch.name == "then_branch" for each in branch.g.node]
        return Counter(node.op_type for node in nodes)

    return kinds


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CNN that has seen the digits for one epoch."""
    path = tmp_path_factory.mktemp("checkpoints") / "cnn.safetensors"
    run_training(TrainingJob(name="cnn", out=path, changes={"epochs": 1}), unwatched)
    return path


@pytest.fixture
def even_race(make_even: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is measured by `make bench`, not by tests: here int8 wins by a fixed figure, every integer product pays, and no process is started."""
    make_even(monkeypatch)


@pytest.fixture(scope="session")
def make_even() -> Callable[[pytest.MonkeyPatch], None]:
    """What `even_race` does, for fixtures that live longer than one test."""
    from edgeport_export import pipeline, quantization

    heats = {"fp32": Heat(median_ms=2.0, rounds_ms=(2.0,)), "int8": Heat(median_ms=1.0, rounds_ms=(1.0,))}

    def make(patch: pytest.MonkeyPatch) -> None:
        for room in (pipeline, quantization):
            patch.setattr(room, "race", lambda contenders, **_: {name: heats[name.removesuffix(DATA_PARALLEL)] for name in contenders})
        patch.setattr(quantization, "Stopwatch", EvenClock)

    return make


class EvenClock:
    """A stopwatch for which every product with int8 weights saves a millisecond."""

    def __init__(self, **_: object) -> None: ...

    def __enter__(self) -> "EvenClock":
        return self

    def __exit__(self, *_: object) -> None: ...

    def compare(self, first: Path, second: Path) -> tuple[float, float]:
        return self._time(first), self._time(second)

    def _time(self, path: Path) -> float:
        weights = [each for each in onnx.load(path).graph.initializer if each.data_type == onnx.TensorProto.INT8 and each.dims]
        return 100.0 - len(weights)
