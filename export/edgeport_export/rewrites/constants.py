"""Constants and values that a rewrite leaves without a reader."""

import onnx

from .nodes import every_node


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the initializers that nothing reads: onnxruntime warns of every one left behind."""
    used = {name for node in every_node(graph) for name in node.input} | {each.name for each in graph.output}
    for unused in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(unused)


def drop_unread_values(graph: onnx.GraphProto, name: str) -> None:
    """Remove the node that makes the value `name`, if nothing reads what it makes, and then those that only it read; and their constants."""
    left = [name]
    while left:
        value = left.pop()
        node = next((each for each in graph.node if value in each.output), None)
        used = {each for other in every_node(graph) for each in other.input} | {each.name for each in graph.output}
        if node is not None and not used & set(node.output):
            graph.node.remove(node)
            left.extend(node.input)
    drop_unread(graph)
