import pytest

from edgeport_export import ExportError
from edgeport_export.bundle.compatibility import lowest_onnxruntime


@pytest.mark.parametrize(
    ("opset", "ir_version", "release"),
    [  # from the release notes: 1.17 implements onnx 1.15 (opset 20, IR 9), 1.18 onnx 1.16 (21, 10), 1.21 onnx 1.17 (22), 1.23 onnx 1.18 (23, IR 11)
        (20, 9, "1.17"),
        (18, 8, "1.17"),
        (20, 10, "1.18"),
        (21, 9, "1.19"),  # 1.18.1 says of blocks: scale must be 1D tensor
        (22, 10, "1.21"),
        (23, 11, "1.23"),
        (20, 11, "1.23"),
    ],
)
def test_the_lowest_release_that_loads_a_file(opset: int, ir_version: int, release: str) -> None:
    assert lowest_onnxruntime(opset, ir_version) == release


@pytest.mark.parametrize(("opset", "ir_version"), [(24, 10), (20, 12)])
def test_versions_that_nothing_is_known_about_are_refused(opset: int, ir_version: int) -> None:
    with pytest.raises(ExportError, match=f"no onnxruntime release is known to load opset {opset} with IR {ir_version}"):
        lowest_onnxruntime(opset, ir_version)
