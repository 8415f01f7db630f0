from typing import Any

from edgeport_export.cli.tables import summary_lines, variant_table

FP32 = {
    "bytes": 4000,
    "ms_per_call": {"8": 4.0, "1": 0.9},
    "speedup": {"8": 1.0, "1": 1.0},
    "split_batch_speedup": None,
    "load_ms": 30.4,
    "peak_mib": 200.0,
    "quality": 0.9,
    "changed_labels": 0,
    "sqnr_db": None,
    "agreement": {},
    "integer_share": None,
}
INT8 = {
    **FP32,
    "bytes": 1234567,
    "ms_per_call": {"8": 2.0, "1": 1.2},
    "speedup": {"8": 2.0, "1": 0.75},
    "split_batch_speedup": 1.25,
    "changed_labels": 3,
    "sqnr_db": 41.26,
    "agreement": {"classes": 0.99996, "all": 1},
    "integer_share": 0.75,
}
SUMMARY: dict[str, Any] = {
    "variants": {"fp32": FP32, "int8": INT8},
    "integer": {"convolutions": {"integer": 19, "all": 20}, "matrix products": {"integer": 1, "all": 1}},
    "recovery": [
        {"name": "outliers moved into weights", "before_db": 20.49, "after_db": 29.73, "taken": True},
        {"name": "a range for each value", "before_db": 29.73, "after_db": 29.75, "taken": False},
    ],
    "kept_float": {f"layer{index}/Conv": "time: it is faster in float" for index in range(14)},
    "warnings": ["the machine was busy"],
}
QUALITY = {"metric": "accuracy", "values": {"torch": 0.9, "fp32": 0.9, "int8": 0.9}, "count": 50}


def test_the_table_has_a_row_for_pytorch_and_each_variant() -> None:
    columns, rows = variant_table(SUMMARY, QUALITY, {"fp32"})
    assert columns[:5] == ["variant", "ms at batch 8", "ms at batch 1", "quality", "labels changed"] and {len(row) for row in rows} == {len(columns)}
    assert [row[0] for row in rows] == ["PyTorch", "fp32", "(int8, left out)"] and rows[0][3] == "90.00%"
    assert rows[2][1:] == ["2 (2.00x)", "1.2 (0.75x)", "90.00%", "3", "41.3", "1,234,567", "200", "30", "75%"]


def test_what_was_not_measured_is_an_empty_cell() -> None:
    nothing = {**FP32, "ms_per_call": {}, "speedup": {}, "load_ms": None, "peak_mib": None, "quality": None, "changed_labels": None}
    columns, rows = variant_table({"variants": {"fp32": FP32, "fp16": nothing}}, None, {"fp32", "fp16"})
    assert len(rows) == 2 and dict(zip(columns, rows[1], strict=True)) == {**dict.fromkeys(columns, ""), "variant": "fp16", "bytes": "4,000"}


def test_the_lines_below_the_table() -> None:
    lines = list(summary_lines(SUMMARY))
    assert lines[0] == "int8: 19 of 20 convolutions and 1 of 1 matrix products run as integers"
    assert "int8: 1.25 times as fast again in batches if each thread runs images of its own (split_batch)" in lines
    assert "int8: 99.9% of the entries of classes are fp32's" in lines and "int8: 100.0% of the entries of all are fp32's" in lines
    assert sum(line.startswith("float in int8: layer") for line in lines) == 12 and "float in int8: 2 more, each with its reason" in "\n".join(lines)
    assert lines[1:3] == [
        "nearer to fp32: outliers moved into weights: 20.5 dB before, 29.7 dB after",
        "nearer to fp32: a range for each value: 29.7 dB before, 29.8 dB after, so it was left out",
    ]
    assert lines[-1] == "warning: the machine was busy"
