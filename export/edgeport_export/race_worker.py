"""The process of one engine in a race: reads its order, warms up, then times one round for every line it is sent.

Run as a file, not as a module, so that an onnxruntime lane never imports torch.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from edgeport_runtime import Bundle, load
from edgeport_runtime.timing import example_inputs, measure_calls


def main(order: dict[str, Any]) -> None:
    call = (_torch_call if order["kind"] == "torch" else _onnx_call)(order)
    call()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(measure_calls(call, seconds=order["seconds"], warm_up=1).median_ms, flush=True)


def _onnx_call(order: dict[str, Any]) -> Callable[[], Any]:
    model = load(order["path"], threads=order["threads"])
    inputs = example_inputs(model.contract, batch=order["batch"], size_px=order["size_px"])
    return lambda: model.raw(**inputs)


def _torch_call(order: dict[str, Any]) -> Callable[[], Any]:
    import torch

    from edgeport_export.export_job import source_of_bundle
    from edgeport_export.source import load_source
    from edgeport_export.wrap import Reference
    from edgeport_runtime.device import usable_threads

    torch.set_num_threads(order["threads"] or usable_threads())
    source = source_of_bundle(Bundle(order["bundle"]), order["path"] or None, order["target"]) if order["target"] else load_source(order["path"])
    reference = Reference(source.network, source.contract)
    if order["mode"] == "channels_last":
        reference.network.to(memory_format=torch.channels_last)
    if order["mode"] == "compile":
        reference.network.compile(dynamic=False)
    inputs = example_inputs(source.contract, batch=order["batch"], size_px=order["size_px"])
    return lambda: reference.run(inputs)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
