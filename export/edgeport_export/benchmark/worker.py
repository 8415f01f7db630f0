"""The process of one engine: reads its request, warms up, then times one round for every line it is sent.

A line that is a request itself makes it change over to that engine. It answers "ready" with its loading time and the memory it holds. To a round it
answers with three figures: its time, the share of it that the engine's threads waited for a processor, and how long all threads ran for one call.

Run as a file, not as a module, so that an onnxruntime process never imports torch.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeport_export.crowding import processor_seconds
from edgeport_runtime import Bundle, load
from edgeport_runtime.installation import onnxruntime
from edgeport_runtime.threads import usable_threads
from edgeport_runtime.timing import example_inputs, measure_calls


def main(request: dict[str, Any]) -> None:
    call = _ready(request)
    for line in sys.stdin:
        if line.startswith("{"):
            del call  # its memory and its threads go before the next one comes
            request = json.loads(line)
            call = _ready(request)
        else:
            before = processor_seconds()
            timing = measure_calls(call, seconds=request["seconds"], warm_up=1)
            ran, waited = (after - first for after, first in zip(processor_seconds(), before, strict=True))
            crowded = (request["threads"] or 1) > usable_threads()  # they wait for one another
            share = None if crowded or not ran + waited else waited / (ran + waited)
            print(json.dumps({"ms": timing.median_ms, "waited": share, "processor_ms": 1e3 * ran / (timing.calls + 1)}), flush=True)


def _ready(request: dict[str, Any]) -> Callable[[], Any]:
    call, load_ms = (_torch_call if request["kind"] == "torch" else _onnx_call)(request)
    call()
    print(json.dumps({"ready": True, "load_ms": load_ms, "peak_bytes": _peak_bytes()}), flush=True)
    return call


def _peak_bytes(status: Path = Path("/proc/self/status")) -> int:
    """The most memory this process has held. Linux passes the parent's figure of getrusage on to its children, so it is read elsewhere."""
    try:
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _onnx_call(request: dict[str, Any]) -> tuple[Callable[[], Any], float]:
    onnxruntime()  # importing it is no part of loading a model
    start = time.perf_counter()
    model = load(request["path"], threads=request["threads"], split_batch=request["split_batch"], latency="lowest" if request["spinning"] else "normal")
    load_ms = (time.perf_counter() - start) * 1e3
    inputs = example_inputs(model.contract, batch=request["batch"], size_px=request["size_px"])
    return lambda: model.raw(**inputs), load_ms


def _torch_call(request: dict[str, Any]) -> tuple[Callable[[], Any], float]:
    import torch

    from edgeport_export.network.reference import TorchReference
    from edgeport_export.sources import load_source, source_of_bundle

    torch.set_num_threads(request["threads"] or usable_threads())
    start = time.perf_counter()
    factory = request["factory"]
    source = source_of_bundle(Bundle(request["bundle"]), request["path"], factory) if factory is not None else load_source(request["path"])
    reference = TorchReference(source.network, source.contract)
    if request["mode"] == "channels_last":
        reference.network.to(memory_format=torch.channels_last)
    if request["mode"] == "compile":
        reference.network.compile(dynamic=False)
    load_ms = (time.perf_counter() - start) * 1e3
    inputs = example_inputs(source.contract, batch=request["batch"], size_px=request["size_px"])
    return lambda: reference.run(inputs), load_ms


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
