"""The results of the benchmark, as Markdown."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

PLAIN_FP32 = ("ORT fp32, dynamic", "ORT fp32, fixed size")
PLAIN_U8S8 = "ORT quantize_static U8S8"
TORCH = ("PyTorch eager", "PyTorch channels-last", "torch.compile")
NNCF = "OpenVINO + NNCF int8"
NORMAL = "edgeport, default latency"


def table(rows: list[dict[str, Any]], method: str) -> str:
    """The results as Markdown: one table for each network and batch, and what follows from all of them. `method`: how they were measured."""
    lines = ["# edgeport against its peers", "", f"Written by `make bench`. {packages(rows[0]['peers'])}.", ""]
    lines += method.splitlines()
    lines += ["", "![chart](bench.svg)", "", *summary(rows)]
    for row in rows:
        median = {label: statistics.median(times) for label, times in row["times"].items()}
        auto = next(value for label, value in median.items() if "auto" in label)
        lines += [
            "",
            f"## {row['name']}, {row['side']}x{row['side']}, batch {row['batch']}",
            "",
            f"{row['processor']}, {row['threads']} threads.",
            "",
            "| engine | ms per call | times edgeport auto | spread of rounds | dB from fp32 |",
        ]
        lines += ["|---|---:|---:|---:|---:|"]
        for label, value in sorted(median.items(), key=lambda each: each[1]):
            times = row["times"][label]
            lines.append(f"| {label} | {value:.3f} | {value / auto:.2f} | {min(times):.3f} to {max(times):.3f} | {_decibels(row['sqnr_db'].get(label))} |")
        lines += [f"| {label} | did not start: {words[:120]} | | | |" for label, words in row["failed"].items()]
        if row["processes"] > 1:
            lines += ["", f"Timed in {row['processes']} processes each."]
        if row["unsteady"]:
            lines += ["", f"{row['unsteady']} of these turns found no steady machine."]
    return "\n".join(lines) + "\n"


def about_machine(threads: int) -> str:
    """The processor and the packages, as a sentence."""
    from edgeport_export.bundle.environment import processor

    return f"{processor()}, {threads} threads; {packages({})}."


def packages(peers: Mapping[str, str]) -> str:
    """What was measured, with versions. `peers`: packages of another environment."""
    from edgeport_export.bundle.environment import versions

    return ", ".join(f"{package} {version}" for package, version in {**versions(), **peers}.items())


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """edgeport's auto against the best of each kind of peer."""
    lines = ["How many times as long as edgeport's `auto` the best of each kind takes:", ""]
    lines += [
        "| network | batch | auto | its default latency | plain ORT fp32 | plain U8S8 | best of both | best PyTorch | OpenVINO + NNCF int8 | on |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    gains = {}
    for row in rows:
        median = {label: statistics.median(times) for label, times in row["times"].items()}
        label, auto = next((label, value) for label, value in median.items() if "auto" in label)
        fp32 = min(median[each] for each in PLAIN_FP32 if each in median)
        u8s8, nncf = median.get(PLAIN_U8S8, math.inf), median.get(NNCF)
        torch = min(median[each] for each in TORCH if each in median)
        gains[row["name"], row["batch"]] = min(fp32, u8s8) / auto
        normal = median.get(NORMAL)
        shares = [normal, fp32, u8s8, min(fp32, u8s8), torch, nncf]
        cells = ["" if each is None else f"{each / auto:.2f}" for each in shares]
        lines.append(f"| {row['name']} | {row['batch']} | {label.split('(')[1].rstrip(')')} | {' | '.join(cells)} | {row['processor']} |")
    own = [gain for (name, batch), gain in gains.items() if batch == 16 and name in ("resnet18", "generator", "attention", "cnn")]
    if len(own) == 4:
        logs = [math.log(gain) for gain in own]
        lines += ["", f"Geometric mean of the four own networks at batch 16 over the best of plain fp32 and plain U8S8: {math.exp(sum(logs) / 4):.2f};"]
        lines += [f"the largest single share of that gain is {max(logs) / sum(logs):.0%}."]
    return lines
