"""A batcher under load for a long time: `make soak` prints what it found, and fails if a promise is broken.

ResNet18 at 224, int8, two threads. First batches of 16 are run directly, for comparison. Then, in turns:
saturated: as many client threads as `--clients`, each with its next image as soon as it has its answer; half load: requests at random times, half as
many a second as were answered when saturated; refusals: a short queue, short deadlines, and clients that leave.
Every answer is compared with that of its image alone. `--sizes N`: images of N sizes instead of one.

    python tests/bench/soak.py [--folder bench] [--seconds 600] [--clients 64] [--sizes 1]
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

MAX_BATCH, MAX_WAIT_MS = 16, 2.0
IMAGES = 64  # different ones, of one size
CLOSE = 1e-4  # of a score: a batch sums in another order than one image
SIDES = (32, 160)  # of images of many sizes
DIRECT_SECONDS = 8.0


class Load:
    """A batcher, the images that it is asked for, and what was found."""

    def __init__(self, bundle: Path, sizes: int) -> None:
        from edgeport_runtime import load

        self.model = load(bundle, batch=MAX_BATCH, max_batch=MAX_BATCH)
        generator = np.random.default_rng(0)
        side = self.model.contract.pixels.height
        pairs = [(side, side)] * IMAGES if sizes == 1 else [tuple(int(each) for each in generator.integers(*SIDES, 2)) for _ in range(sizes)]
        self.images = [generator.integers(0, 256, (*pair, 3), dtype=np.uint8) for pair in pairs]
        self.keeps_size = sizes > 1
        self.expected = [self.alone(each) for each in self.images]
        self.latencies_ms: list[float] = []
        self.wrong = Counter[str]()
        self.lock = threading.Lock()

    def alone(self, image: np.ndarray) -> Any:
        """The answer to one image by itself."""
        return self.model(image)

    def check(self, index: int, answer: Any, started: float) -> None:
        spent_ms = (time.perf_counter() - started) * 1e3
        expected = self.expected[index]
        right = answer.index == expected.index and abs(answer.score - expected.score) < CLOSE
        with self.lock:
            self.latencies_ms.append(spent_ms)
            self.wrong["answers that are another image's"] += not right

    def p99_ms(self) -> float:
        return sorted(self.latencies_ms)[int(0.99 * len(self.latencies_ms))] if self.latencies_ms else 0.0


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def direct(load: Load) -> float:
    """Images per second of batches of 16 run one after the other."""
    pixels, done, end = np.stack(load.images[:MAX_BATCH]), 0, time.perf_counter() + DIRECT_SECONDS
    for _ in range(5):
        load.model.raw(pixels)
    start = time.perf_counter()
    while time.perf_counter() < end:
        load.model.raw(pixels)
        done += MAX_BATCH
    return done / (time.perf_counter() - start)


def saturated(load: Load, clients: int, seconds: float, memory: list[float]) -> float:
    """Images per second that the clients were answered."""
    end, load.latencies_ms = time.perf_counter() + seconds, []

    def client(seed: int) -> None:
        picks = random.Random(seed)
        while time.perf_counter() < end:
            index, started = picks.randrange(len(load.images)), time.perf_counter()
            load.check(index, batcher(load.images[index]).result(60), started)

    with load.model.batcher(max_batch=MAX_BATCH, max_wait_ms=MAX_WAIT_MS) as batcher:
        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
        start = time.perf_counter()
        for each in threads:
            each.start()
        while any(each.is_alive() for each in threads):
            time.sleep(1)
            memory.append(resident_mb())
        spent, counted = time.perf_counter() - start, batcher.counters()
    if counted["accepted"] != counted["answered"] or counted["answered"] != len(load.latencies_ms):
        load.wrong[f"answers lost: {counted['accepted']} accepted, {counted['answered']} answered, {len(load.latencies_ms)} received"] += 1
    return len(load.latencies_ms) / spent


def half_load(load: Load, per_second: float, seconds: float) -> None:
    """Requests at random times, whether the earlier ones were answered or not."""
    picks, pending, load.latencies_ms = random.Random(1), [], []
    with load.model.batcher(max_batch=MAX_BATCH, max_wait_ms=MAX_WAIT_MS) as batcher:
        due = time.perf_counter()
        end = due + seconds
        while due < end:
            time.sleep(max(0.0, due - time.perf_counter()))
            index, started = picks.randrange(len(load.images)), time.perf_counter()
            request = batcher(load.images[index])
            request.add_done_callback(lambda each, index=index, started=started: load.check(index, each.result(), started))
            pending.append(request)
            due += picks.expovariate(per_second)
        for each in pending:
            each.result(60)


def outcome(load: Load, batcher: Any, picks: random.Random) -> str:
    """How one request ended: some images are torn, some deadlines short, and some clients leave."""
    from edgeport_runtime import ImageError
    from edgeport_runtime.errors import DeadlineError, QueueFullError

    index, torn = picks.randrange(len(load.images)), picks.random() < 0.1
    try:
        request = batcher(b"torn" if torn else load.images[index], deadline_ms=picks.choice((5.0, 50.0, 5000.0)))
        if picks.random() < 0.2 and request.cancel():
            return "canceled"
        load.check(index, request.result(60), time.perf_counter())
        return "answered"
    except QueueFullError:
        time.sleep(0.001)
        return "refused"
    except DeadlineError:
        return "expired"
    except ImageError:
        return "failed"


def refusals(load: Load, seconds: float) -> Counter[str]:
    """What clients saw, and what the batcher counted, must be one."""
    seen, lock, end = Counter[str](), threading.Lock(), time.perf_counter() + seconds

    def client(seed: int) -> None:
        picks = random.Random(seed)
        while time.perf_counter() < end:
            try:
                ended = outcome(load, batcher, picks)
            except Exception as error:  # no answer in time, say: what no client may see
                ended = type(error).__name__
                load.wrong[f"a client saw {ended}"] += 1
            with lock:
                seen[ended] += 1

    with load.model.batcher(max_batch=MAX_BATCH, max_wait_ms=MAX_WAIT_MS, max_queue=24) as batcher:
        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(48)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        counted = batcher.counters()
    for name in ("answered", "refused", "expired", "failed", "canceled"):
        if seen[name] != counted[name]:
            load.wrong[f"{name}: clients saw {seen[name]}, the batcher counted {counted[name]}"] += 1
    return seen


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path("bench"))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--sizes", type=int, default=1)
    given = parser.parse_args()
    bundle = given.folder / "resnet18" / "bundle"
    if not bundle.exists():
        subprocess.run([sys.executable, str(Path(__file__).with_name("bench.py")), "--prepare", "resnet18", "--folder", str(given.folder)], check=True)
    load = Load(bundle, given.sizes)
    return report(load, given)


def report(load: Load, given: argparse.Namespace) -> int:
    """Every phase, a line each; 1 if a promise is broken."""
    broken: list[str] = []
    memory: list[float] = []
    before = direct(load) if not load.keeps_size else 0.0
    answered = saturated(load, given.clients, given.seconds, memory)
    after = direct(load) if not load.keeps_size else 0.0
    first_minute = memory[: min(60, len(memory) // 2)]
    growth = max(memory[-30:]) / max(first_minute) - 1
    print(f"saturated, {given.clients} clients, {given.seconds:.0f} s: {len(load.latencies_ms)} answers, {answered:.1f} a second, p99 {load.p99_ms():.0f} ms")
    print(f"memory: {max(first_minute):.0f} MiB in the first minute, {max(memory[-30:]):.0f} at the end, {growth:+.1%}")
    if not load.keeps_size:
        bare = statistics.mean((before, after))
        batch_ms = MAX_BATCH / bare * 1e3
        print(f"direct batches of {MAX_BATCH}: {before:.1f} images a second before, {after:.1f} after; the batcher gives {answered / bare:.1%}")
        broken += [] if answered >= 0.9 * bare else ["less than 90 % of direct batches"]
        broken += [] if load.p99_ms() <= MAX_WAIT_MS + 5 * batch_ms else [f"p99 beyond {MAX_WAIT_MS + 5 * batch_ms:.0f} ms when saturated"]
        half_load(load, answered / 2, min(60.0, given.seconds))
        limit = MAX_WAIT_MS + 2 * batch_ms
        print(f"half load, {answered / 2:.1f} requests a second: p99 {load.p99_ms():.0f} ms (a batch takes {batch_ms:.0f} ms, the limit is {limit:.0f} ms)")
        broken += [] if load.p99_ms() <= limit else ["p99 beyond its limit at half load"]
    seen = refusals(load, min(60.0, given.seconds / 4))
    print(f"short queue and deadlines: {dict(seen)}")
    broken += [] if growth < 0.05 else ["memory grew by 5 % and more"]
    broken += [f"{each} ({count} times)" for each, count in load.wrong.items() if count]
    print("\n".join(f"BROKEN: {each}" for each in broken) or "every answer was its image's own, and every request ended in one way")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
