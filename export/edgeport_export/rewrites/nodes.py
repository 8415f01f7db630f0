"""What a node says of itself."""

from typing import Any

import onnx
from onnx import helper


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Name -> value of every attribute that is written; strings are bytes."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}
