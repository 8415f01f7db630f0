"""The lowest onnxruntime that loads a file, from its opset and IR version."""

from edgeport_export.errors import ExportError

# Checked by loading such files in onnxruntime 1.17.0, 1.18.1, 1.19.2, 1.20.1, 1.21.0, 1.22.0 and 1.23.0.
# First onnxruntime release -> newest opset and IR version it loads; each release implements one onnx release (onnx.helper.VERSION_TABLE).
# 1.18 implements opset 21 without blocks in QuantizeLinear, which is what we take that opset for.
RELEASES = (("1.17", 20, 9), ("1.18", 20, 10), ("1.19", 21, 10), ("1.21", 22, 10), ("1.23", 23, 11))


def lowest_onnxruntime(opset: int, ir_version: int) -> str:
    """Raises ExportError for versions newer than the table knows."""
    for release, newest_opset, newest_ir in RELEASES:
        if opset <= newest_opset and ir_version <= newest_ir:
            return release
    raise ExportError(f"no onnxruntime release is known to load opset {opset} with IR {ir_version}; the newest known is {RELEASES[-1]}")
