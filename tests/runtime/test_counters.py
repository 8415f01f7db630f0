"""Counts are what happened, also under many threads, and the text is what Prometheus reads."""

import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgeport_runtime.counters import Counters, prometheus


def test_a_latency_is_counted_in_every_bucket_that_it_fits() -> None:
    counters = Counters(("calls", "images"))
    for latency_ms in (0.1, 0.15, 3.0, 9000.0):
        counters.observe(latency_ms, calls=1, images=2)
    counters.add(images=-1)
    found = counters.snapshot()
    assert (found["calls"], found["images"]) == (4, 7)
    latency = found["latency_ms"]
    assert latency["count"] == 4 and latency["sum"] == pytest.approx(9003.25)
    assert latency["at_most"][0.1] == 1 and latency["at_most"][0.2] == 2 and latency["at_most"][5.0] == 3 and latency["at_most"][5000.0] == 3


def test_nothing_is_lost_between_threads() -> None:
    counters = Counters(("calls",))
    threads = [threading.Thread(target=lambda: [counters.observe(1.0, calls=1) for _ in range(2000)]) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert counters.snapshot()["calls"] == counters.snapshot()["latency_ms"]["count"] == 16_000


@pytest.mark.parametrize("label", ["plain", 'with "quotes"', "with \\ and\nlines"])
def test_prometheus_reads_the_text(label: str) -> None:
    counters = Counters(("calls", "waiting"))
    counters.observe(1.5, calls=3, waiting=1)
    families = {
        each.name: each
        for each in text_string_to_metric_families(prometheus(counters.snapshot(), {"model": label, "worker": 3}, prefix="edgeport", gauges=("waiting",)))
    }
    assert (families["edgeport_calls"].type, families["edgeport_waiting"].type, families["edgeport_latency_seconds"].type) == ("counter", "gauge", "histogram")
    samples = {(each.name, each.labels.get("le")): each for family in families.values() for each in family.samples}
    assert samples["edgeport_calls_total", None].value == 3 and samples["edgeport_waiting", None].value == 1
    assert samples["edgeport_latency_seconds_bucket", "0.001"].value == 0 and samples["edgeport_latency_seconds_bucket", "0.002"].value == 1
    assert samples["edgeport_latency_seconds_bucket", "+Inf"].value == samples["edgeport_latency_seconds_count", None].value == 1
    assert samples["edgeport_latency_seconds_sum", None].value == pytest.approx(0.0015)
    assert all(each.labels["model"] == label for each in samples.values())


def test_without_labels() -> None:
    assert "edgeport_calls_total 0\n" in prometheus(Counters(("calls",)).snapshot(), prefix="edgeport")
