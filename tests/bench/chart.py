"""The benchmark's chart: time of every engine over edgeport's auto, at batch 16 and 1. Runs where matplotlib is installed."""

import json
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt

plt.switch_backend("svg")
plt.rcParams["svg.hashsalt"] = "edgeport"  # the same results give the same file

SHOWN = {
    "PyTorch, best": ("PyTorch eager", "PyTorch channels-last", "torch.compile"),
    "ORT fp32, best": ("ORT fp32, dynamic", "ORT fp32, fixed size"),
    "ORT U8S8": ("ORT quantize_static U8S8",),
    "OpenVINO + NNCF int8": ("OpenVINO + NNCF int8",),
}


def main(results: Path, target: Path) -> None:
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    batches = sorted({row["batch"] for row in rows}, reverse=True)
    figure, panels = plt.subplots(len(batches), 1, figsize=(10, 3.4 * len(batches)), squeeze=False)
    for panel, batch in zip(panels[:, 0], batches, strict=True):
        chosen = [row for row in rows if row["batch"] == batch]
        for index, (label, engines) in enumerate(SHOWN.items()):
            heights = []
            for row in chosen:
                median = {name: statistics.median(times) for name, times in row["times"].items()}
                auto = next(value for name, value in median.items() if "auto" in name)
                found = [median[name] for name in engines if name in median]
                heights.append(min(found) / auto if found else 0)
            panel.bar([place + 0.2 * index - 0.3 for place in range(len(chosen))], heights, 0.18, label=label)
        panel.axhline(1, color="black", linewidth=1)
        panel.set_xticks(range(len(chosen)), [row["name"] for row in chosen])
        panel.set_ylabel(f"time over edgeport auto\nbatch {batch}")
    panels[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
