"""Milliseconds from a detector's raw outputs to boxes, on one core: 8,400 anchors, 80 classes, 300 candidates above the threshold.

taskset -c 0 python tests/bench/boxes.py
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import time

import numpy as np

from edgeport_runtime import DetectionHead
from edgeport_runtime.detector import detect

ANCHORS, CLASSES, CANDIDATES, CALLS = 8400, 80, 300, 200


def main() -> None:
    draw = np.random.default_rng(0)
    scores = draw.normal(-9, 1, (ANCHORS, CLASSES)).astype(np.float32)
    scores.reshape(-1)[draw.choice(scores.size, CANDIDATES, replace=False)] = draw.uniform(-1, 3, CANDIDATES)
    for name, spread_px in (("scattered over the image", 600.0), ("on top of each other", 40.0)):
        boxes = np.concatenate([draw.uniform(0, spread_px, (ANCHORS, 2)), draw.uniform(20, 100, (ANCHORS, 2))], axis=1).astype(np.float32)
        joined = np.concatenate([boxes, scores], axis=1)
        for layout, outputs, axis in (
            ("boxes and scores apart", {"boxes": boxes[None], "scores": scores[None]}, 1),
            ("joined (1, 84, 8400)", {"joined": np.ascontiguousarray(joined.T)[None]}, 2),
        ):
            head = DetectionHead(box_format="center", anchors_axis=axis, score_threshold=0.25, most=CANDIDATES)
            times = []
            for _ in range(CALLS):
                start = time.perf_counter()
                (found,) = detect(outputs, head, (640, 640))
                times.append(1e3 * (time.perf_counter() - start))
            print(f"{layout}, {name}: {statistics.median(times):.2f} ms, {len(found.boxes)} boxes")


if __name__ == "__main__":
    main()
