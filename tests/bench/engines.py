"""The process of one engine: reads its order, warms up, then times one round for every line it is sent.

Every engine takes the same uint8 pixels (N, H, W, C) and gives the network's output: normalisation is part of what is timed, and every peer
has it where it is fastest, inside its graph. Peers run with the settings their manuals give for latency on this number of threads.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

warnings.filterwarnings("ignore")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
LEAST_CALLS = 3
NNCF_IMAGES = 16


def edgeport(order: dict[str, Any], pixels: np.ndarray) -> Callable[[], Any]:
    from edgeport_runtime import load

    model = load(order["path"], precision=order["precision"], batch=order["batch"], threads=order["threads"])
    return lambda: model.raw(pixels)


def onnxruntime(order: dict[str, Any], pixels: np.ndarray) -> Callable[[], Any]:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = order["threads"], 3
    session = ort.InferenceSession(order["path"], settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"pixels": pixels})


def openvino(order: dict[str, Any], pixels: np.ndarray) -> Callable[[], Any]:
    import logging

    logging.disable(logging.ERROR)
    import openvino as ov

    core = ov.Core()
    model = core.read_model(order["path"])
    model.reshape([1, *pixels.shape[1:]])
    if order["precision"] == "int8":
        import nncf

        images = np.load(order["images"])[:NNCF_IMAGES]
        model = nncf.quantize(model, nncf.Dataset([image[None] for image in images]), subset_size=NNCF_IMAGES)
    model.reshape(list(pixels.shape))
    # f32 is forced: the default is bf16 on CPUs that have it, which is another precision than the one it is compared with
    options = {"INFERENCE_NUM_THREADS": order["threads"], "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda: [request.infer({0: pixels})[0]]


def torch(order: dict[str, Any], pixels: np.ndarray) -> Callable[[], Any]:
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    from subjects import SUBJECTS, Plain

    torch.set_num_threads(order["threads"])
    torch.set_grad_enabled(False)
    module = Plain(SUBJECTS[order["subject"]]()).eval()
    if order["precision"] == "channels-last":
        module = module.to(memory_format=torch.channels_last)
    if order["precision"] == "compile":
        module = torch.compile(module)
    tensor = torch.from_numpy(pixels)
    return lambda: module(tensor)


def main(order: dict[str, Any]) -> None:
    pixels = np.ascontiguousarray(np.load(order["images"])[: order["batch"]])
    call = {"edgeport": edgeport, "onnxruntime": onnxruntime, "openvino": openvino, "torch": torch}[order["kind"]](order, pixels)
    answer = call()
    np.save(order["answer"], np.asarray(answer[0] if isinstance(answer, list) else next(iter(answer.values())) if isinstance(answer, Mapping) else answer))
    call()
    print("ready", flush=True)
    for _ in sys.stdin:
        call()
        spent: list[float] = []
        end = time.perf_counter() + order["seconds"]
        while len(spent) < LEAST_CALLS or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            spent.append((time.perf_counter() - start) * 1e3)
        print(sorted(spent)[len(spent) // 2], flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
