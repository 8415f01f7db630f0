"""The process of one engine: reads its request, warms up, then times one round for every line it is sent.

Every engine takes the same uint8 pixels (N, H, W, C) and gives the network's output: normalization is part of what is timed, and every peer
has it in the fastest place, inside its graph. Peers run with the settings their manuals give for latency on this number of threads.
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


def edgeport(request: dict[str, Any], pixels: np.ndarray) -> Callable[[], Any]:
    from edgeport_runtime import load

    model = load(request["path"], precision=request["precision"], batch=request["batch"], threads=request["threads"], latency=request["latency"])
    return lambda: model.raw(pixels)


def onnxruntime(request: dict[str, Any], pixels: np.ndarray) -> Callable[[], Any]:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = request["threads"], 3
    session = ort.InferenceSession(request["path"], settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"pixels": pixels})


def openvino(request: dict[str, Any], pixels: np.ndarray) -> Callable[[], Any]:
    import logging

    logging.disable(logging.ERROR)
    import openvino as ov

    core = ov.Core()
    model = core.read_model(request["path"])
    model.reshape([1, *pixels.shape[1:]])
    if request["precision"] == "int8":
        import nncf

        images = np.load(request.get("calibration", request["images"]))[: request.get("calibration_images", NNCF_IMAGES)]
        dataset, asked = nncf.Dataset([image[None] for image in images]), request.get("nncf", {})
        preset = nncf.QuantizationPreset.MIXED if asked.get("mixed") else None
        model = nncf.quantize(model, dataset, preset=preset, subset_size=len(images), fast_bias_correction=not asked.get("accurate"))
    model.reshape(list(pixels.shape))
    # f32 is forced: the default is bf16 on CPUs that have it, which is another precision than the one it is compared with
    options = {"INFERENCE_NUM_THREADS": request["threads"], "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda: list(request.infer({0: pixels}).to_tuple())


def torch(request: dict[str, Any], pixels: np.ndarray) -> Callable[[], Any]:
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    from subjects import SUBJECTS, Plain

    torch.set_num_threads(request["threads"])
    torch.set_grad_enabled(False)
    module = Plain(SUBJECTS[request["subject"]]()).eval()
    if request["precision"] == "channels-last":
        module = module.to(memory_format=torch.channels_last)
    if request["precision"] == "compile":
        module = torch.compile(module)
    tensor = torch.from_numpy(pixels)
    return lambda: module(tensor)


def _answers(call: Callable[[], Any], pixels: np.ndarray, images: np.ndarray) -> list[np.ndarray]:
    """Each output for all images, batch by batch; what is left over of a whole batch is not run. The engine reads `pixels`."""
    found = []
    for first in range(0, len(images) - len(pixels) + 1, len(pixels)):
        pixels[:] = images[first : first + len(pixels)]
        made = call()
        found.append([np.array(each) for each in (made.values() if isinstance(made, Mapping) else made)])
    return [np.concatenate(each) for each in zip(*found, strict=True)]


def main(request: dict[str, Any]) -> None:
    pixels = np.ascontiguousarray(np.load(request["images"])[: request["batch"]])
    call = {"edgeport": edgeport, "onnxruntime": onnxruntime, "openvino": openvino, "torch": torch}[request["kind"]](request, pixels)
    answer = call()
    np.save(request["answer"], np.asarray(answer[0] if isinstance(answer, list) else next(iter(answer.values())) if isinstance(answer, Mapping) else answer))
    if "every" in request:
        np.savez(request["every"], *_answers(call, pixels, np.load(request["images"])))
    call()
    print("ready", flush=True)
    for _ in sys.stdin:
        call()
        spent: list[float] = []
        end = time.perf_counter() + request["seconds"]
        while len(spent) < LEAST_CALLS or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            spent.append((time.perf_counter() - start) * 1e3)
        print(sorted(spent)[len(spent) // 2], flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
