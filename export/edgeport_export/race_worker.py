"""The process of one engine in a race: reads its order, warms up, then times one round for every line it is sent.

A line that is an order itself makes it change over to that engine. It answers "ready" with what loading took and the memory it holds; a round
with its time and with the share of it that the engine's threads waited for a processor.

Run as a file, not as a module, so that an onnxruntime lane never imports torch.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeport_runtime import Bundle, load
from edgeport_runtime.device import onnxruntime, usable_threads
from edgeport_runtime.timing import example_inputs, measure_calls


def main(order: dict[str, Any]) -> None:
    call = _ready(order)
    for line in sys.stdin:
        if line.startswith("{"):
            del call  # its memory and its threads go before the next one comes
            order = json.loads(line)
            call = _ready(order)
        else:
            before = processor_seconds()
            median_ms = measure_calls(call, seconds=order["seconds"], warm_up=1).median_ms
            ran, waited = (after - first for after, first in zip(processor_seconds(), before, strict=True))
            crowded = order["threads"] > usable_threads()  # they wait for one another
            print(json.dumps({"ms": median_ms, "waited": waited / (ran + waited) if waited and not crowded else 0.0}), flush=True)


def processor_seconds(tasks: Path = Path("/proc/self/task")) -> tuple[float, float]:
    """What all threads of this process have run, and what they have waited for a processor that others held. Zeros where the system does not tell."""
    told = [path.read_text().split() for path in tasks.glob("*/schedstat")]
    ran, waited = (sum(int(each[index]) for each in told if len(each) == 3) / 1e9 for index in (0, 1))
    return ran, waited


def _ready(order: dict[str, Any]) -> Callable[[], Any]:
    call, load_ms = (_torch_call if order["kind"] == "torch" else _onnx_call)(order)
    call()
    print(json.dumps({"ready": True, "load_ms": load_ms, "peak_bytes": _peak_bytes()}), flush=True)
    return call


def _peak_bytes(status: Path = Path("/proc/self/status")) -> int:
    """The most memory this process has held. Linux hands the parent's figure of getrusage on to its children, so it is asked elsewhere."""
    try:
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _onnx_call(order: dict[str, Any]) -> tuple[Callable[[], Any], float]:
    onnxruntime()  # importing it is no part of loading a model
    start = time.perf_counter()
    model = load(order["path"], threads=order["threads"], data_parallel=order["data_parallel"])
    load_ms = (time.perf_counter() - start) * 1e3
    inputs = example_inputs(model.contract, batch=order["batch"], size_px=order["size_px"])
    return lambda: model.raw(**inputs), load_ms


def _torch_call(order: dict[str, Any]) -> tuple[Callable[[], Any], float]:
    import torch

    from edgeport_export.export_job import source_of_bundle
    from edgeport_export.source import load_source
    from edgeport_export.wrap import Reference

    torch.set_num_threads(order["threads"] or usable_threads())
    start = time.perf_counter()
    source = source_of_bundle(Bundle(order["bundle"]), order["path"] or None, order["target"]) if order["target"] else load_source(order["path"])
    reference = Reference(source.network, source.contract)
    if order["mode"] == "channels_last":
        reference.network.to(memory_format=torch.channels_last)
    if order["mode"] == "compile":
        reference.network.compile(dynamic=False)
    load_ms = (time.perf_counter() - start) * 1e3
    inputs = example_inputs(source.contract, batch=order["batch"], size_px=order["size_px"])
    return lambda: reference.run(inputs), load_ms


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
