"""Constants that a rewrite leaves without a reader."""

import onnx


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the initializers that nothing reads: onnxruntime warns of every one left behind."""
    used = {name for node in graph.node for name in node.input} | {each.name for each in graph.output}
    for unused in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(unused)
