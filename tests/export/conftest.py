"""Small networks that export in a second or two, and one trained checkpoint."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import onnx
import pytest

from edgeport_export.progress import unwatched
from edgeport_export.race import Heat
from edgeport_export.training_job import TrainingJob, run_training
from edgeport_runtime import Contract, Pixels
from edgeport_runtime.contract import classification, image_axes, image_to_image

STORED = Path(__file__).parents[1] / "fixtures"


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
            patch.setattr(room, "race", lambda contenders, **_: {name: heats[name] for name in contenders})
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
