"""Which variant is loaded, where it runs and why; and that a copy is the same model, or an error."""

import copy
import json
import multiprocessing
import pickle
import subprocess
import sys
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgeport_runtime import AlteredError, Bundle, BundleError, DeviceError, FormatError, InputError, Model, SessionOptions, load, selection
from edgeport_runtime import loading as loading_module
from edgeport_runtime.bundle import MANIFEST
from edgeport_runtime.check import CheckReport
from edgeport_runtime.engine import Engine
from edgeport_runtime.load_options import LoadOptions
from edgeport_runtime.manifest import TargetCpu, sealed

pytestmark = pytest.mark.usefixtures("on_x86")
DARK, BRIGHT = (np.full((16, 16, 3), level, np.uint8) for level in (30, 220))


def test_a_bundle_that_was_loaded_for_batches_runs_them_all_alike(altered: Path) -> None:
    manifest = json.loads((altered / MANIFEST).read_text())
    manifest["auto"] = {"precision": "fp32", "reason": "slower alone", "in_batches": "int8", "from_batch": "8"}
    (altered / MANIFEST).write_text(json.dumps(sealed(manifest)))
    alone, together = load(altered), load(altered, batch=8)
    assert (alone.precision, together.precision, load(altered, precision="fp32", batch=8).precision) == ("fp32", "int8", "fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(together.raw(pixels)["logits"], load(altered, precision="int8").raw(pixels)["logits"])
    for path in (altered, altered / "model.int8.onnx"):
        assert load(path, batch=np.int64(8)).precision in ("int8", "as stored")  # type: ignore[arg-type]
        for wrong in (0, -1, 9, "8", None, 2.0, float("nan"), True):
            with pytest.raises(InputError, match=f"whole number within 1..8, got {wrong!r}"):
                load(path, batch=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "threads", "expected"),
    [
        ({"batch": 8}, 2, True),
        ({"batch": 8, "precision": "int8"}, 2, True),
        ({"batch": 8}, 4, True),
        ({"batch": 6}, 2, True),
        ({"batch": np.int64(8)}, 2, True),
        ({"batch": 4}, 2, False),
        ({"batch": 4, "precision": "int8"}, 2, False),  # measured from 6 images on
        ({"batch": 7}, 2, False),  # does not divide
        ({"batch": 8}, 3, False),
        ({"batch": 8}, 1, False),
        ({"batch": 8, "precision": "fp32"}, 2, False),  # measured with the other one
        ({"batch": 8, "split_batch": False}, 2, False),
        ({"split_batch": True}, 2, True),
        ({}, 2, False),
    ],
)
def test_batches_are_split_among_the_threads_as_was_measured(altered: Path, given: dict[str, Any], threads: int, expected: bool) -> None:
    manifest = json.loads((altered / MANIFEST).read_text())
    manifest["auto"] = {"precision": "fp32", "reason": "slower alone", "in_batches": "int8", "from_batch": "6", "data_parallel_from": "6"}
    (altered / MANIFEST).write_text(json.dumps(sealed(manifest)))
    model = load(altered, threads=threads, **given)
    assert model.engine.options.split_batch == expected
    report = model.check()
    assert report and len(report.comparisons) == (6 if expected else 4)  # golden cases go through both sessions, and their images one by one


def test_values_that_split_batch_cannot_have_are_refused(altered: Path) -> None:
    for wrong in ("yes", 1, np.array([True, False])):
        with pytest.raises(InputError, match="True, False, or None for what was measured, got "):
            load(altered, split_batch=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="split_batch must be True or False, got 'no'"):
        SessionOptions(split_batch="no")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="threads of a CPU, so there is none on cuda"):
        load(altered, device="cuda", split_batch=True)


def test_fp16_that_fails_its_golden_cases_on_the_card_is_not_taken(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading_module, "choose", lambda *_: ("fp16", "the fast one"))
    asked: list[str] = []
    closed: list[str] = []

    def loaded(bundle: Bundle, chosen: str, reason: str, *options: Any) -> Model:
        asked.append(chosen)
        made = real(bundle, "fp32", reason, *options)
        if chosen == "fp16":
            monkeypatch.setattr(made, "check", lambda: CheckReport(precision="fp16", against="the host", comparisons=()))
            monkeypatch.setattr(made.engine, "close", lambda: closed.append(chosen))
        return made

    real = loading_module._load_variant
    monkeypatch.setattr(loading_module, "_load_variant", loaded)
    found = load(classifier)
    assert asked == ["fp16", "fp32"] and closed == ["fp16"]  # its memory is free before fp32 is loaded
    assert "fp16 does not pass its golden cases on this card" in found.reason


def test_seven_bit_weights_need_no_probe(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "int8_products_are_exact", lambda: False)
    bundle = Bundle(classifier)
    assert real_load(bundle).engine.options.exact_int8
    x86 = TargetCpu(name="x86", machines=("x86_64",), narrow_weights=True)
    narrow = tuple(replace(each, target=x86) if each.precision == "int8" else each for each in bundle.manifest.variants)
    bundle.manifest = replace(bundle.manifest, variants=narrow)
    assert not real_load(bundle).engine.options.exact_int8


def real_load(bundle: Bundle) -> Model:
    return loading_module._load_variant(bundle, "int8", "asked for", SessionOptions(), LoadOptions())


def test_a_lone_file_loads_without_its_bundle(classifier: Path, tmp_path: Path) -> None:
    path = tmp_path / "lone.onnx"
    path.write_bytes((classifier / "model.onnx").read_bytes())
    model = load(path)
    np.testing.assert_array_equal(model.raw(DARK[None])["logits"], load(classifier, precision="fp32").raw(DARK[None])["logits"])
    with pytest.raises(BundleError, match=r"a lone \.onnx file carries no golden cases"):
        model.check()
    for precision in ("int8", "fp32"):
        with pytest.raises(InputError, match="leave precision at 'auto'"):
            load(path, precision=precision)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(FormatError, match=r"lone\.onnx: .*damaged"):
        load(path)
    with pytest.raises(BundleError, match="cannot be read"):
        load(tmp_path / "nothing.onnx")


def test_auto_gives_its_reason(classifier: Path) -> None:
    model = load(classifier)
    assert model.precision in ("int8", "fp32")
    assert model.reason.startswith("int8 is ") and "times as fast as fp32 at batch 8" in model.reason
    with pytest.raises(InputError, match="precision must be one of"):
        load(classifier, precision="int4")


def test_a_graph_with_other_names_is_refused(classifier: Path, generator: Path) -> None:
    model = load(classifier)
    with pytest.raises(BundleError, match=r"promises \['pixels'\] -> \['logits'\], but the graph has \['pixels'\] -> \['image'\]"):
        Engine((generator / "model.onnx").read_bytes(), model.contract, model.engine.options)


def test_fp16_that_passes_its_golden_cases_says_so_afterwards(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading_module, "choose", lambda *_: ("fp16", "fp16 is the fast precision on CUDA"))
    real = loading_module._load_variant
    monkeypatch.setattr(loading_module, "_load_variant", lambda bundle, chosen, reason, *options: real(bundle, "fp32", reason, *options))
    assert load(classifier).reason == "fp16 is the fast precision on CUDA, and its golden cases passed on this card"


@pytest.mark.parametrize(("exact", "precision", "slower"), [(True, "int8", False), (False, "int8", True), (False, "fp32", False)])
def test_int8_takes_exact_products_if_the_cpu_saturates(classifier: Path, exact: bool, precision: str, slower: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "int8_products_are_exact", lambda: exact)
    loaded = load(classifier, precision=precision)
    assert loaded.engine.options.exact_int8 is slower and ("saturate" in loaded.reason) is slower
    assert loaded.check() and loaded.bundle is not None
    alone = load(classifier / loaded.bundle.variant(precision).file)
    assert alone.engine.options.exact_int8 is slower and ("saturate" in alone.reason) is slower


def test_auto_without_a_card_says_why_it_is_the_cpu(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading_module, "require_cuda", lambda ort: (_ for _ in ()).throw(DeviceError("asked for cuda, but there is no card")))
    with load(classifier, device="auto", tf32=True) as model:
        assert model.device == "cpu" and model.reason.endswith("; on cpu, because asked for cuda, but there is no card")
        assert model.check()
    with pytest.raises(DeviceError, match=r"asked for cuda|could only start"):
        load(classifier, device="cuda")


def test_auto_takes_the_cpu_if_the_session_cannot_start(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries are there, and the card is another program's, say."""
    monkeypatch.setattr(loading_module, "require_cuda", lambda ort: None)
    monkeypatch.setattr("edgeport_runtime.device.require_cuda", lambda ort: (_ for _ in ()).throw(DeviceError("could only start the CPU")))
    with load(classifier, device="auto") as model:
        assert model.device == "cpu" and "; on cpu, because CUDA could not start: could only start the CPU" in model.reason


@pytest.mark.parametrize("asked", [{"precision": "int8"}, {"split_batch": True}])
def test_auto_takes_the_cpu_for_what_only_a_cpu_does(classifier: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading_module, "require_cuda", lambda ort: None)
    with load(classifier, device="auto", **asked) as model:
        assert model.device == "cpu" and "was asked for, which runs on a CPU" in model.reason


def own_session(model: bytes) -> onnxruntime.InferenceSession:
    own_session.seen = model  # type: ignore[attr-defined]
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def test_a_session_of_ones_own_gets_the_bytes_whose_hash_was_checked(classifier: Path, altered: Path) -> None:
    with load(classifier, session=own_session, precision="fp32") as model:
        assert own_session.seen == (classifier / "model.onnx").read_bytes()  # type: ignore[attr-defined]
        assert "in the caller's own session" in model.reason and model.check()
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).raw(DARK[None])["logits"], model.raw(DARK[None])["logits"])
    (altered / "model.onnx").write_bytes(b"other")
    with pytest.raises(AlteredError):
        load(altered, session=own_session, precision="fp32")


def test_a_session_of_ones_own_may_have_no_arena(generator: Path) -> None:
    """onnxruntime refuses to give memory back that it does not manage, so such sessions are not asked to after a spike."""

    def without_arena(model: bytes) -> onnxruntime.InferenceSession:
        settings = onnxruntime.SessionOptions()
        settings.enable_cpu_mem_arena = False
        return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])

    with load(generator, session=without_arena, precision="fp32") as model:
        for side in (8, 8, 8, 64, 8):
            assert model.raw(np.zeros((1, side, side, 3), np.uint8))["image"].shape[1] == side


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "deepcopy", "pickle"])
def test_a_copy_is_loaded_with_the_same_options(classifier: Path, how: Any) -> None:
    with load(classifier, precision="int8", threads=1, latency="lowest", max_batch=3, max_memory_mb=7) as model, how(model) as other:
        assert other is not model and other.engine is not model.engine
        assert (other.precision, other.engine.options, other.bounds, other.reason) == (model.precision, model.engine.options, model.bounds, model.reason)
        np.testing.assert_array_equal(other.raw(BRIGHT[None])["logits"], model.raw(BRIGHT[None])["logits"])


def test_a_pickle_of_another_bundle_is_refused(altered: Path, generator: Path) -> None:
    pickled = pickle.dumps(load(altered))
    manifest = json.loads((altered / MANIFEST).read_text())
    (altered / MANIFEST).write_text(json.dumps(sealed({**manifest, "name": "another"})))
    with pytest.raises(AlteredError, match=r"this is another bundle than the model was loaded from \(sha256\)"):
        pickle.loads(pickled)
    (altered / MANIFEST).unlink()
    with pytest.raises(BundleError, match="no manifest"):
        pickle.loads(pickled)
    lone = altered / "model.onnx"
    pickled = pickle.dumps(load(lone))
    lone.write_bytes((generator / "model.onnx").read_bytes())
    with pytest.raises(AlteredError):
        pickle.loads(pickled)


def test_a_relative_path_is_found_from_another_folder(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(classifier.parent)
    pickled = pickle.dumps(load(classifier.name))
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickled).check()


def test_a_model_that_was_made_by_hand_is_not_copied(classifier: Path) -> None:
    model = load(classifier)
    by_hand = Model(model.engine, precision="fp32", reason="by hand", bundle=None)
    with pytest.raises(InputError, match="not made by load"):
        copy.deepcopy(by_hand)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking with threads, which is what is shown here
def test_a_model_goes_to_other_processes(classifier: Path, method: str) -> None:
    """Forked after it was loaded and has run, spawned, or from a fork server: the same numbers.

    The other process can import the packages, but not this test: a pool whose processes cannot read their work starts new ones for ever.
    """
    call = methodcaller("raw", DARK[None])
    with load(classifier, threads=2) as model:
        expected = call(model)["logits"]
        with multiprocessing.get_context(method).Pool(2) as pool:
            for got in pool.map_async(call, [model] * 4).get(timeout=120):
                np.testing.assert_array_equal(got["logits"], expected)


SCRIPT = """
import os, sys, threading
import numpy as np
from edgeport_runtime import load

def in_a_child(call):
    pid = os.fork()
    if pid == 0:
        try:
            call()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def calls(count):
    return [threading.Thread(target=model.raw, args=(pixels,)) for _ in range(count)]

model = load(sys.argv[1], threads=2)
pixels = np.full((8, 64, 64, 3), 30, np.uint8)
WAY
print("well", flush=True)
"""
WAYS = {
    "dropped during a call": """
threads = calls(8)
[each.start() for each in threads]
del model
[each.join() for each in threads]""",
    "a daemon thread calls at the exit": """
threading.Thread(target=lambda: [model.raw(pixels) for _ in range(10**6)], daemon=True).start()
model.raw(pixels)""",
    "called at the exit": """
import atexit
atexit.register(lambda: model.raw(pixels))""",
    "nothing is written": """
def watch(event, args):
    if event in ("os.mkdir", "os.rename", "os.remove") or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")):
        raise PermissionError(f"{event}: {args}")
sys.addaudithook(watch)
with load(sys.argv[1]) as again, again.batcher() as batcher:
    assert again.check() and batcher(pixels[0]).result(20)""",
    "forked before it has run": """
assert in_a_child(lambda: model.raw(pixels)) == 0 and len(model.raw(pixels)["logits"]) == 8""",
    "forked after it has run": """
model.raw(pixels)
assert in_a_child(lambda: model.raw(pixels)) == 0 and len(model.raw(pixels)["logits"]) == 8""",
    "forked twice": """
model.raw(pixels)
def inner():
    assert in_a_child(lambda: model.raw(pixels)) == 0
assert in_a_child(inner) == 0""",
    "forked during a call": """
thread = calls(1)[0]
thread.start()
assert in_a_child(lambda: model.raw(pixels)) == 0
thread.join()""",
    "a batcher that nobody closed": """
batcher = model.batcher()
futures = [batcher(pixels[0]) for _ in range(40)]""",
    "a batcher that was dropped": """
batcher = model.batcher()
futures = [batcher(pixels[0]) for _ in range(40)]
del batcher
[each.result(20) for each in futures]""",
    "a batcher closed in a child of a busy parent": """
batcher = model.batcher(max_queue=10**6)
stop = threading.Event()
def feed():
    while not stop.is_set():
        batcher(pixels[0]).result(20)
feeders = [threading.Thread(target=feed) for _ in range(4)]
[each.start() for each in feeders]
for _ in range(5):
    assert in_a_child(batcher.close) == 0
stop.set()
[each.join() for each in feeders]""",
    "a batcher that was closed stays closed in a child": """
from edgeport_runtime.errors import ClosedError
batcher = model.batcher()
batcher.close()
def closed():
    try:
        batcher(pixels[0])
    except ClosedError:
        return
    raise AssertionError
assert in_a_child(closed) == 0""",
    "interrupted by signals": """
import random, signal
class TimeIsUp(Exception):
    pass
def handler(*_):
    raise TimeIsUp
signal.signal(signal.SIGALRM, handler)
batcher = model.batcher(max_queue=10**6)
calls = [lambda: model.raw(pixels), lambda: batcher(pixels[0]), lambda: batcher(b"torn")]
for trial in range(600):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00002, 0.002))
        while True:
            calls[trial % 3]()
    except TimeIsUp:
        pass
signal.setitimer(signal.ITIMER_REAL, 0)
others = [threading.Thread(target=model.raw, args=(pixels,)) for _ in range(4)]
[each.start() for each in others]
[each.join(20) for each in others]
assert not any(each.is_alive() for each in others)
assert in_a_child(lambda: model.raw(pixels)) == 0
batcher.close()""",
    "a batcher after a fork": """
batcher = model.batcher()
batcher(pixels[0]).result()
assert in_a_child(lambda: batcher(pixels[0]).result(20)) == 0 and batcher(pixels[0]).result(20)""",
}


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")
@pytest.mark.parametrize("way", WAYS)
def test_processes_end_well(classifier: Path, way: str, tmp_path: Path) -> None:
    """Without HOME, in a folder that cannot be written to, and with Python's own threads at their exit: no crash, no hang, nothing on stderr."""
    bare = {"PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT.replace("WAY", WAYS[way]), str(classifier.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=bare, cwd="/", check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "well", "")


def test_a_bundle_that_is_replaced_while_it_is_loaded_is_loaded_anew(altered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its manifest was read another bundle takes its place, and the files are that one's; or none is there for an instant."""
    real, left = Bundle.read, [3]

    def read(bundle: Bundle, file: Any) -> bytes:
        if left[0]:
            left[0] -= 1
            manifest = json.loads((altered / MANIFEST).read_text())
            (altered / MANIFEST).write_text(json.dumps(sealed({**manifest, "name": f"another{left[0]}"})))
            raise AlteredError("its content differs")
        return real(bundle, file)

    monkeypatch.setattr(Bundle, "read", read)
    with load(altered, precision="fp32") as model:
        assert model.bundle is not None and model.bundle.manifest.name == "another0" and model.check()
    left[0] = 10**6
    with pytest.raises(AlteredError, match="its content differs"):  # it does not go on for ever
        load(altered, precision="fp32")


def test_a_model_is_not_given_the_evidence_of_another_bundle(altered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = Bundle.evidence, list[str]()

    def evidence(bundle: Bundle) -> dict[str, Any]:
        seen.append(bundle.manifest.name)
        if len(seen) == 1:
            manifest = json.loads((altered / MANIFEST).read_text())
            (altered / MANIFEST).write_text(json.dumps(sealed({**manifest, "name": "another"})))
        return real(bundle)

    monkeypatch.setattr(Bundle, "evidence", evidence)
    assert load(altered, precision="fp32").bundle.manifest.name == "another" and seen == ["tiny-classifier", "another"]  # type: ignore[union-attr]


def test_an_altered_bundle_is_not_loaded_again_and_again(altered: Path) -> None:
    (altered / "model.onnx").write_bytes(b"other")
    with pytest.raises(AlteredError, match=r"model\.onnx: the content differs .*export or copy the bundle again"):
        load(altered, precision="fp32")


def test_a_lone_file_is_checked_as_a_bundle_is(classifier: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "lone.onnx"
    model = onnx.load(classifier / "model.onnx")
    for change, message in (
        (lambda made: setattr(made.graph.node[0], "domain", "com.microsoft"), "holds operators of com.microsoft, and edgeport writes ONNX's own alone"),
        (lambda made: made.functions.add(name="f", domain="d"), "the model holds functions of its own"),
        (lambda made: setattr(made.graph.initializer[0], "raw_data", b"x"), "which its data do not fill; edgeport never writes that"),
        (lambda made: setattr(made.graph.initializer[0], "data_location", 1), "tensors are kept outside the model file"),
    ):
        made = onnx.ModelProto()
        made.CopyFrom(model)
        change(made)
        path.write_bytes(made.SerializeToString())
        with pytest.raises(BundleError, match=message):
            load(path)
    made.CopyFrom(model)
    made.graph.node[0].domain = "com.microsoft"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(Exception, match=r"com\.microsoft"):  # of onnxruntime: a session of the caller's own may know such operators
        load(path, session=own_session)


def test_bytes_are_read_as_onnx_whatever_they_look_like(classifier: Path, tmp_path: Path) -> None:
    """With "ORTM" at the fifth byte onnxruntime reads its own format, so what was checked would not be what runs. Here both are in one file."""
    path = tmp_path / "lone.onnx"
    unknown_field = bytes([0x92, 0x3F])  # number 1010, of a length: its content is skipped
    data = (classifier / "model.onnx").read_bytes()
    path.write_bytes(unknown_field + b"\x20" + b"\0ORTM" + bytes(27) + data)
    assert path.read_bytes()[4:8] == b"ORTM"
    np.testing.assert_array_equal(load(path).raw(DARK[None])["logits"], load(classifier, precision="fp32").raw(DARK[None])["logits"])


MEMORY_AT_LOAD = """
import resource, sys
from edgeport_runtime.device import SessionOptions, open_session
open_session(open(sys.argv[1], "rb").read(), SessionOptions())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
open_session(open(sys.argv[2], "rb").read(), SessionOptions())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_what_a_graph_computes_beforehand_is_bounded(classifier: Path, tmp_path: Path) -> None:
    """A file of 150 bytes took 825 MB at load."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper

    shape = helper.make_tensor("s", onnx.TensorProto.INT64, [1], [200_000_000])
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["b"]), helper.make_node("Add", ["b", "b"], ["y"])]
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)], [shape])
    path = tmp_path / "bomb.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    command = [sys.executable, "-c", MEMORY_AT_LOAD, str(classifier / "model.onnx"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64
