from pathlib import Path

import pytest

from edgeport_runtime import load, model, probe
from edgeport_runtime.protobuf import read_outline


def test_the_probe_answers_and_remembers() -> None:
    assert probe.int8_products_are_exact() in (True, False)
    assert probe.int8_products_are_exact.cache_info().currsize == 1
    assert read_outline(probe.MODEL).nodes == 1 and probe.EXACT == 2_072_640


def test_a_saturating_cpu_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "EXACT", 1_048_544)  # what such a CPU gives is not what is expected, and the other way round
    probe.int8_products_are_exact.cache_clear()
    try:
        assert not probe.int8_products_are_exact()
    finally:
        probe.int8_products_are_exact.cache_clear()


@pytest.mark.parametrize(("exact", "precision", "slower"), [(True, "int8", False), (False, "int8", True), (False, "fp32", False)])
def test_int8_takes_exact_products_where_the_cpu_saturates(
    classifier: Path, exact: bool, precision: str, slower: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "int8_products_are_exact", lambda: exact)
    loaded = load(classifier, precision=precision)
    assert loaded.engine.options.exact_int8 is slower and ("saturate" in loaded.reason) is slower
    assert loaded.check()
    alone = load(classifier / loaded.bundle.variant(precision).file)
    assert alone.engine.options.exact_int8 is slower and ("saturate" in alone.reason) is slower
