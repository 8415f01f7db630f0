"""A load test of a deployed MLServer folder on loopback: `make serve`, or `python tests/bench/serve.py FOLDER` in the environment `.venv-deploy`.

Many clients ask over gRPC for some time, one image each, of golden inputs and of noise. Told are answers and failures, the sizes of batches that images ran in,
times, and whether golden outputs are those that the bundle holds.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc

from edgeport_runtime import Bundle, load
from edgeport_runtime.comparison import compare

RUNTIME = Path(__file__).parents[2] / "runtime"


async def ready(client: Any, name: str, server: "subprocess.Popen[bytes]", seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while True:
        try:
            if await client.is_model_ready(name):
                return
        except grpc.InferenceServerException:
            pass
        if server.poll() is not None or time.monotonic() > ends:
            raise SystemExit(f"the server did not become ready (exit code {server.poll()})")
        await asyncio.sleep(0.2)


async def ask(client: Any, name: str, pixels: np.ndarray, output: str) -> tuple[np.ndarray, int]:
    given = grpc.InferInput("pixels", list(pixels.shape), "UINT8")
    given.set_data_from_numpy(pixels)
    answer = await client.infer(name, [given])
    return answer.as_numpy(output), int(answer.get_response().parameters["batch"].int64_param)


async def served(folder: Path, clients: int, seconds: float, server: "subprocess.Popen[bytes]") -> dict[str, Any]:
    (place,) = [each.parent for each in folder.glob("*/model-settings.json")]
    bundle, port = Bundle(place / "bundle"), json.loads((folder / "settings.json").read_text())["grpc_port"]
    output = bundle.manifest.contract.outputs[0].name
    settings = json.loads((place / "model-settings.json").read_text())
    generator, batches, times, failures = np.random.default_rng(0), Counter[int](), list[float](), list[str]()
    contract = bundle.manifest.contract
    images = [generator.integers(0, 256, (1, contract.pixels.height, contract.pixels.width, contract.pixels.channels), dtype=np.uint8) for _ in range(16)]
    with load(place / "bundle", precision=settings["parameters"]["extra"]["precision"]) as model:
        expected = [model.raw(image)[output] for image in images]
        precision = model.precision
    async with grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
        await ready(client, place.name, server)
        golden = []
        for case in [each for each in bundle.manifest.golden if each.sizes is None]:
            wanted = bundle.tensor(case.host[precision][0])
            got, _ = await ask(client, place.name, bundle.tensor(case.inputs[0]), output)
            golden.append(bool(compare(case.folder, got, wanted, case.tolerance[precision][0])))
        ends, sent = time.monotonic() + seconds, 0
        wrong = 0

        async def one(number: int) -> None:
            nonlocal sent, wrong
            turn = number
            while time.monotonic() < ends:
                turn, began = turn + 1, time.monotonic()
                sent += 1
                try:
                    got, batch = await ask(client, place.name, images[turn % len(images)], output)
                except Exception as error:  # each is counted
                    failures.append(f"{type(error).__name__}: {error}")
                    continue
                times.append(time.monotonic() - began)
                batches[batch] += 1
                wanted = expected[turn % len(images)]
                wrong += not np.allclose(
                    got.astype(float), wanted.astype(float), rtol=0, atol=1e-3 * (float(np.ptp(wanted.astype(float))) or 1) + (got.dtype == np.uint8)
                )

        await asyncio.gather(*(one(number) for number in range(clients)))
        odd = await odd_requests(client, place.name, images[0], output)
    return {
        "clients": clients,
        "seconds": seconds,
        "sent": sent,
        "answered": len(times),
        "failures": failures[:3],
        "wrong": wrong,
        "golden": golden,
        "largest_batch": max(batches, default=0),
        "in_batches_beyond_4": sum(count for batch, count in batches.items() if batch > 4) / max(1, len(times)),
        "images_per_second": round(len(times) / seconds, 1),
        "median_ms": round(1e3 * float(np.median(times)), 2) if times else None,
        "p99_ms": round(1e3 * float(np.percentile(times, 99)), 2) if times else None,
        **odd,
    }


async def odd_requests(client: Any, name: str, good: np.ndarray, output: str) -> dict[str, Any]:
    """Bad requests beside good ones: the bad ones alone fail."""
    bad = np.zeros((1, 5, 5, 7), np.uint8)
    answers = await asyncio.gather(*(ask(client, name, bad if index % 4 == 0 else good, output) for index in range(16)), return_exceptions=True)
    refused = [each for index, each in enumerate(answers) if index % 4 == 0]
    kept = [each for index, each in enumerate(answers) if index % 4]
    return {"bad_refused": all(isinstance(each, Exception) for each in refused), "good_kept": not any(isinstance(each, Exception) for each in kept)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    given = parser.parse_args()
    environment = {**os.environ, "PYTHONPATH": str(RUNTIME)}
    command = [str(Path(sys.executable).parent / "mlserver"), "start", "."]
    with subprocess.Popen(command, cwd=given.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            found = asyncio.run(served(given.folder, given.clients, given.seconds, server))
        finally:
            server.terminate()
    print(json.dumps(found, indent=1))
    good = found["answered"] == found["sent"] > 0 and not found["wrong"] and all(found["golden"]) and found["bad_refused"] and found["good_kept"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
