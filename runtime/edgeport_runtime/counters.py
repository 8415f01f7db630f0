"""Counts and latencies of a model or a batcher, as plain numbers and in the text form that Prometheus reads."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from .threads import fork_safe_lock

LIMITS_MS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)  # upper ends of the histogram's buckets


class Counters:
    """Counts by name, and a histogram of latencies. Safe to use from several threads. `names`: every count there is, at first 0."""

    def __init__(self, names: Iterable[str]) -> None:
        self._lock = fork_safe_lock()
        self._counts = dict.fromkeys(names, 0)
        self._buckets = [0] * (len(LIMITS_MS) + 1)
        self._total_ms = 0.0

    def add(self, **counts: int) -> None:
        """Add to counts by their names."""
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count

    def observe(self, latency_ms: float, **counts: int) -> None:
        """Add one latency, and to counts by their names."""
        place = next((index for index, limit in enumerate(LIMITS_MS) if latency_ms <= limit), len(LIMITS_MS))
        with self._lock:
            self._buckets[place] += 1
            self._total_ms += latency_ms
            for name, count in counts.items():
                self._counts[name] += count

    def snapshot(self) -> dict[str, Any]:
        """The counts, and "latency_ms": how many latencies ("count"), their "sum", and for each limit how many were at most so long."""
        with self._lock:
            counts, buckets, total_ms = dict(self._counts), list(self._buckets), self._total_ms
        reached = [sum(buckets[: index + 1]) for index in range(len(buckets))]
        return {**counts, "latency_ms": {"count": reached[-1], "sum": total_ms, "at_most": dict(zip(LIMITS_MS, reached, strict=False))}}


def prometheus(snapshot: Mapping[str, Any], labels: Mapping[str, object] = MappingProxyType({}), *, prefix: str, gauges: Iterable[str] = ()) -> str:
    """A snapshot in Prometheus's text form: counts as `PREFIX_NAME_total`, gauges as `PREFIX_NAME`, latencies in seconds as a histogram.

    `gauges`: names of counts that also fall. `labels`: of every line. https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    lines = []
    for name, count in snapshot.items():
        if name == "latency_ms":
            continue
        kind, full = ("gauge", f"{prefix}_{name}") if name in gauges else ("counter", f"{prefix}_{name}_total")
        lines += [f"# TYPE {full} {kind}", f"{full}{_labels(labels)} {count}"]
    latency, full = snapshot["latency_ms"], f"{prefix}_latency_seconds"
    lines.append(f"# TYPE {full} histogram")
    lines += [f"{full}_bucket{_labels({**labels, 'le': f'{limit / 1e3:g}'})} {count}" for limit, count in latency["at_most"].items()]
    lines.append(f"{full}_bucket{_labels({**labels, 'le': '+Inf'})} {latency['count']}")
    lines += [f"{full}_sum{_labels(labels)} {latency['sum'] / 1e3:.9g}", f"{full}_count{_labels(labels)} {latency['count']}"]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, object]) -> str:
    """Backslashes, quotes and line breaks are escaped as the format asks."""
    escaped = {name: str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for name, value in labels.items()}
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}" if labels else ""
