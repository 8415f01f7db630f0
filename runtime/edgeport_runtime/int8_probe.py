"""Does this CPU multiply int8 exactly? Asked by a tiny product, because CPU flags lie under emulation and in containers.

x86 CPUs without VNNI add pairs of 8-bit products in 16 bits, which saturates: 255 x 127 summed over 64 terms gives 1,048,544
instead of 2,072,640, and an int8 network is quietly wrong (microsoft/onnxruntime#14642). onnxruntime's session option
`session.x64quantprecision` makes such CPUs exact, at some cost in speed.
"""

import base64
import functools

import numpy as np

from .installation import onnxruntime

# MatMulInteger of uint8 x[1, 64] and int8 w[64, 16] into int32 y, IR 8, opset 13; tests build the same graph with onnx.
MODEL = base64.b64decode(
    "CAg6YAoYCgF4CgF3EgF5Ig1NYXRNdWxJbnRlZ2VyEgVwcm9iZVoTCgF4Eg4KDAgCEggKAggBCgIIQFoTCgF3Eg4KDAgDEggKAghACgIIEGITCgF5Eg4KDAgGEggKAggBCgIIEEIECgAQDQ=="
)
EXACT = 255 * 127 * 64


@functools.cache
def int8_products_are_exact() -> bool:
    """Run the product once (some 7 ms) and remember the answer for the process."""
    ort = onnxruntime()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    session = ort.InferenceSession(MODEL, settings, providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.full((1, 64), 255, np.uint8), "w": np.full((64, 16), 127, np.int8)})[0]
    return bool((found == EXACT).all())
