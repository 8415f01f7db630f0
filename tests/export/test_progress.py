from edgeport_export.progress import counter, no_progress


def test_a_counter_reports_the_sum() -> None:
    reported: list[tuple[str, int, int]] = []
    advance = counter(lambda stage, done, total, note="": reported.append((stage, done, total)), "calibrating int8", 10)
    advance(4)
    advance(4)
    advance(2)
    assert reported == [("calibrating int8", 0, 10), ("calibrating int8", 4, 10), ("calibrating int8", 8, 10), ("calibrating int8", 10, 10)]


def test_nobody_has_to_listen() -> None:
    advance = counter(no_progress, "tracing", 1)
    assert no_progress("tracing", 0, 1) is None and advance(1) is None  # type: ignore[func-returns-value]
