"""One batch on several threads: the same numbers as every image alone, from whichever session it runs on."""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeport_runtime import Bundle, BundleError, Contract, DeviceError, InputError, SessionOptions
from edgeport_runtime.axes import Range
from edgeport_runtime.engine import Engine, divides
from edgeport_runtime.threads import RunQueue

STORED = Path(__file__).parents[1] / "fixtures" / "format1"


def engine(name: str = "classifier", precision: str = "fp32", **options: Any) -> Engine:
    bundle = Bundle(STORED / name)
    return Engine(bundle.read(bundle.variant(precision)), bundle.manifest.contract, SessionOptions(**options))


def images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 12, 20, 3), dtype=np.uint8)


class Watched:
    """A session that records its runs: how many images, and on which thread."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.runs: list[tuple[int, str]] = []

    def run(self, names: list[str], arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        self.runs.append((len(arrays["pixels"]), threading.current_thread().name))
        values: list[NDArray[Any]] = self.session.run(names, arrays)
        return values


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 8), threads=st.integers(1, 4), which=st.sampled_from([("classifier", "fp32"), ("classifier", "int8"), ("generator", "fp32")]))
def test_every_image_gives_what_it_gives_alone(batch: int, threads: int, which: tuple[str, str]) -> None:
    split, alone = engine(*which, threads=threads, split_batch=True), engine(*which, threads=1)
    pixels = images(batch, seed=batch)
    expected = [alone.run({"pixels": each[None]}) for each in pixels]
    for name, value in split.run({"pixels": pixels}).items():
        # one unit in the last place: a product of one row is summed in another order than one of several
        np.testing.assert_allclose(value, np.concatenate([each[name] for each in expected]), rtol=1e-5, atol=1e-6)


def test_each_thread_runs_as_many_images_and_the_caller_is_one_of_them() -> None:
    made = engine(threads=4, split_batch=True)
    made._single_thread_session = watched = Watched(made._single_thread_session)
    made.run({"pixels": images(8)})
    assert [count for count, _ in watched.runs] == [2, 2, 2, 2] and made._multi_thread_session is None
    names = {name for _, name in watched.runs}
    assert threading.current_thread().name in names and all(name.startswith(("edgeport", "MainThread")) for name in names)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_a_batch_that_does_not_divide_runs_on_a_session_that_is_opened_then(batch: int) -> None:
    made = engine(threads=2, split_batch=True)
    made._single_thread_session = watched = Watched(made._single_thread_session)
    np.testing.assert_allclose(made.run({"pixels": images(batch)})["logits"], engine().run({"pixels": images(batch)})["logits"], atol=1e-6)
    assert not watched.runs and made._multi_thread_session is not None and made._model == b""


def test_one_thread_shares_nothing() -> None:
    made = engine(threads=1, split_batch=True)
    assert made._single_thread_session is None and list(made.execution_modes()) == ["", "image by image"]
    assert made.run({"pixels": images(4)})["logits"].shape == (4, 3)


def test_many_callers_at_once() -> None:
    made, alone = engine(threads=2, split_batch=True), engine(threads=1)
    inputs = [images(1 + seed % 4, seed) for seed in range(24)]
    with ThreadPoolExecutor(6) as callers:
        answers = list(callers.map(lambda pixels: made.run({"pixels": pixels})["logits"], inputs))
    for pixels, answer in zip(inputs, answers, strict=True):
        np.testing.assert_allclose(answer, alone.run({"pixels": pixels})["logits"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "refusal"),
    [
        ({"pixels": images(2).astype(np.int8)}, "expected uint8"),
        ({"pixels": images(2)[..., 0]}, "expected uint8 with axes"),
        ({"pixels": images(2)[:0]}, "batch must be within"),
        ({"image": images(2)}, r"expected the inputs \['pixels'\]"),
        ({"pixels": images(2), "mask": images(2)}, r"expected the inputs \['pixels'\]"),
    ],
)
def test_arrays_that_the_contract_forbids_are_refused_after_others_and_again(arrays: dict[str, NDArray[Any]], refusal: str) -> None:
    made = engine(threads=1)
    expected = made.run({"pixels": images(2)})["logits"]
    for _ in range(2):
        with pytest.raises(InputError, match=refusal):
            made.run(arrays)
    np.testing.assert_array_equal(made.run({"pixels": images(2)})["logits"], expected)


def test_a_failure_on_another_thread_is_raised_here() -> None:
    class Broken(Watched):
        def run(self, names: list[str], arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
            if threading.current_thread() is not threading.main_thread():
                raise RuntimeError("out of memory\nwith details")
            return super().run(names, arrays)

    made = engine(threads=2, split_batch=True)
    made._single_thread_session = Broken(made._single_thread_session)
    with pytest.raises(DeviceError, match=r"failed on cpu at \{'pixels': \(2, 12, 20, 3\)\}: out of memory$"):
        made.run({"pixels": images(4)})


@pytest.mark.parametrize(
    ("batch", "threads", "axis", "expected"),
    [
        (8, 2, Range(low=1, high=8), True),
        (8, 1, Range(low=1, high=8), False),
        (7, 2, Range(low=1, high=8), False),
        (2, 4, Range(low=1, high=8), False),
        (8, 4, Range(low=4, high=8), False),  # parts of two images, and the contract starts at four
        (8, 2, Range(low=4, high=8), True),
        (8, 4, Range(low=1, high=9, step=4), False),  # 1, 5 or 9
    ],
)
def test_parts_keep_to_the_contract(batch: int, threads: int, axis: Range, expected: bool) -> None:
    contract = Bundle(STORED / "classifier").manifest.contract
    assert divides(replace(contract, axes={**contract.axes, "batch": axis}), batch, threads) == expected


def without_rows() -> list[Contract]:
    contract = Bundle(STORED / "classifier").manifest.contract
    (output,) = contract.outputs
    fixed = replace(contract.inputs[0], shape=(4, *contract.inputs[0].shape[1:]))
    axes = {name: size for name, size in contract.axes.items() if name != "batch"}
    return [
        replace(contract, task="tensors", outputs=(replace(output, shape=(3, "batch")),), labels=()),
        replace(contract, inputs=(fixed,), outputs=(replace(output, shape=(4, 3)),), axes=axes),
    ]


@pytest.mark.parametrize("contract", without_rows())
def test_batches_that_cannot_be_cut_are_refused(contract: Contract) -> None:
    bundle = Bundle(STORED / "classifier")
    assert not divides(contract, 4, 2)
    with pytest.raises(InputError, match=r"must be the batch of all inputs and outputs, but they are pixels \(.*\), logits \(.*\): leave it out"):
        Engine(bundle.read(bundle.variant("fp32")), contract, SessionOptions(split_batch=True))


@pytest.mark.parametrize("split", [False, True])
def test_a_closed_engine_frees_its_sessions_and_says_so(split: bool) -> None:
    with engine(threads=2, split_batch=split) as made:
        assert made.run({"pixels": images(4)})["logits"].shape == (4, 3)
    assert made._single_thread_session is made._multi_thread_session is made._pool is None and made._model == b""
    for batch in (3, 4):
        with pytest.raises(DeviceError, match="this engine was closed: load the model again"):
            made.run({"pixels": images(batch)})
    made.close()  # once more does no harm


class Silent:
    """A session whose error has an empty message."""

    def run(self, names: list[str], arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        raise MemoryError


def test_an_error_without_a_message_is_named_by_its_type() -> None:
    made = engine(threads=1)
    made._multi_thread_session = Silent()
    with pytest.raises(DeviceError, match=r"failed on cpu at \{'pixels': \(1, 12, 20, 3\)\}: MemoryError$"):
        made.run({"pixels": images(1)})


def test_outputs_stay_where_they_were_made() -> None:
    """As on a card: inputs and outputs are onnxruntime's own values, of which nothing is copied to numpy unless asked."""
    made, pixels = engine(threads=1), images(3)
    value = onnxruntime.OrtValue.ortvalue_from_numpy(pixels)
    for each in (value, pixels):
        outputs = made.run_bound({"pixels": each})
        assert outputs["logits"].device_name() == "cpu" and outputs["logits"].shape() == [3, 3]
        np.testing.assert_array_equal(outputs["logits"].numpy(), made.run({"pixels": pixels})["logits"])


@pytest.mark.parametrize(
    ("array", "refusal"),
    [
        (images(2).astype(np.float32), "expected uint8 with axes .*, got float32 of shape"),
        (images(2)[..., 0], "expected uint8 with axes"),
        (images(20), "batch must be within"),
    ],
)
def test_values_that_the_contract_forbids_are_refused(array: NDArray[Any], refusal: str) -> None:
    with pytest.raises(InputError, match=refusal):
        engine(threads=1).run_bound({"pixels": onnxruntime.OrtValue.ortvalue_from_numpy(array)})
    with pytest.raises(InputError, match=r"expected the inputs \['pixels'\]"):
        engine(threads=1).run_bound({"image": array})


def test_runs_of_all_models_share_one_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models, eight callers, one place: never two runs at once."""
    queue, most, running, lock = RunQueue(1), 0, 0, threading.Lock()
    monkeypatch.setattr("edgeport_runtime.engine.run_queue", lambda device: queue)

    class Slow(Watched):
        def run(self, *given: Any) -> Any:
            nonlocal most, running
            with lock:
                running += 1
                most = max(most, running)
            values = super().run(*given)
            with lock:
                running -= 1
            return values

    both = [engine(threads=1), engine("generator", threads=1)]
    for each in both:
        each._multi_thread_session = Slow(each._multi_thread_session)
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda index: both[index % 2].run({"pixels": images(4)}), range(64)))
    assert most == 1


def test_a_call_without_arrays_is_refused_as_the_first_one_too() -> None:
    with pytest.raises(InputError, match=r"expected the inputs \['pixels'\], got \[\]"):
        engine(threads=1).run({})


class TimeIsUpError(Exception):
    """As a task queue raises it in a signal's handler, in the middle of whatever runs."""


@pytest.mark.parametrize("error", [TimeIsUpError("90 s"), TimeoutError("90 s")])
def test_errors_that_are_not_of_the_run_pass(error: Exception) -> None:
    class Interrupted:
        def run(self, *_: Any) -> Any:
            raise error

    made = engine(threads=1)
    made._multi_thread_session = Interrupted()
    with pytest.raises(type(error), match="90 s"):
        made.run({"pixels": images(1)})


def test_a_pool_that_closes_under_a_call_is_a_closed_engine() -> None:
    made = engine(threads=2, split_batch=True)
    assert made._pool is not None
    made._pool.close()  # as another thread's `close` does, after this call has begun
    with pytest.raises(DeviceError, match="this engine was closed: load the model again"):
        made.run({"pixels": images(4)})


def test_a_session_may_run_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ensemble: the inner run takes no place of its own, or all would wait for each other."""
    queue = RunQueue(1)
    monkeypatch.setattr("edgeport_runtime.engine.run_queue", lambda device: queue)
    inner, outer = engine(threads=1), engine(threads=1)

    class Ensemble(Watched):
        def run(self, names: list[str], arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
            inner.run(dict(arrays))
            return super().run(names, arrays)

    outer._multi_thread_session = Ensemble(outer._multi_thread_session)
    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda _: outer.run({"pixels": images(2)})["logits"], range(20)))
    assert all((each == answers[0]).all() for each in answers)


def test_memory_is_given_back_by_the_session_that_took_it() -> None:
    """Large batches are split and run on one session, small ones on the other: neither is a spike beside the other."""
    made, options = engine(threads=2, split_batch=True), list[bool]()

    class Recorded(Watched):
        def run(self, names: list[str], arrays: Mapping[str, NDArray[Any]], given: Any = None) -> list[NDArray[Any]]:
            options.append(given is not None)
            return super().run(names, arrays)

    made.run({"pixels": images(1)})
    made._single_thread_session, made._multi_thread_session = Recorded(made._single_thread_session), Recorded(made._multi_thread_session)
    for _ in range(6):
        made.run({"pixels": images(1)})
    for _ in range(3):
        made.run({"pixels": np.zeros((8, 24, 40, 3), np.uint8)})
    assert len(options) == 12 and not any(options)


def graph_of(onnx: Any, output: Any, nodes: list[Any], initializers: Sequence[Any] = ()) -> bytes:
    """A model of pixels whose output is made by these nodes."""
    pixels = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["batch", "height", "width", 3])
    graph = onnx.helper.make_graph(nodes, "g", [pixels], [output], list(initializers))
    return bytes(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10).SerializeToString())


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("FLOAT", ["batch", 3], None),
        ("FLOAT", None, None),
        ("FLOAT16", ["batch", 3], r"the contract promises 'logits' as float32 \(batch, 3\), but the graph has tensor\(float16\)"),
        ("INT64", ["batch", 3], r"but the graph has tensor\(int64\)"),
        ("FLOAT", ["batch", 3, 1], "promises 'logits' as float32"),
        ("FLOAT", [], "promises 'logits' as float32"),
        ("FLOAT", ["batch", 20], "promises 'logits' as float32"),
    ],
)
def test_what_a_graph_declares_is_what_the_contract_promises(kind: str, shape: list[Any] | None, message: str | None, classifier: Path) -> None:
    onnx = pytest.importorskip("onnx")
    contract, helper = Bundle(classifier).manifest.contract, onnx.helper
    nodes = [
        helper.make_node("Cast", ["pixels"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f", "axes"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["c"], to=getattr(onnx.TensorProto, kind)),
        helper.make_node("Reshape", ["c", "target"], ["logits"]),
    ]
    target = [-1, 3] if shape is None else [-1, *(each for each in shape[1:])] if shape else [-1]
    axes, to = (helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values) for name, values in (("axes", [1, 2]), ("target", target)))
    model = graph_of(onnx, helper.make_tensor_value_info("logits", getattr(onnx.TensorProto, kind), shape), nodes, [axes, to])
    if message is None:
        with Engine(model, contract, SessionOptions()) as engine:
            assert engine.run({"pixels": np.zeros((2, 8, 8, 3), np.uint8)})["logits"].shape == (2, 3)
    else:
        with pytest.raises(BundleError, match=message):
            Engine(model, contract, SessionOptions())


def test_what_a_graph_gives_is_what_the_contract_promises(classifier: Path) -> None:
    """It declares nothing, and gives other sizes when it runs."""
    onnx = pytest.importorskip("onnx")
    contract, helper = Bundle(classifier).manifest.contract, onnx.helper
    nodes = [helper.make_node("Cast", ["pixels"], ["f"], to=onnx.TensorProto.FLOAT), helper.make_node("Reshape", ["f", "target"], ["logits"])]
    target = helper.make_tensor("target", onnx.TensorProto.INT64, [2], [-1, 3])
    model = graph_of(onnx, helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [None, None]), nodes, [target])
    with Engine(model, contract, SessionOptions()) as engine:
        for _ in range(2):  # it is not believed the second time either
            with pytest.raises(DeviceError, match=r"promises 'logits' of shape \('batch', 3\) at {'batch': 2, .*but the graph gave \(128, 3\)"):
                engine.run({"pixels": np.zeros((2, 8, 8, 3), np.uint8)})
