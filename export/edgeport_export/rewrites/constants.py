"""Constants and values that a rewrite leaves without a reader."""

import onnx


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the initializers that nothing reads: onnxruntime warns of every one left behind."""
    used = {name for node in graph.node for name in node.input} | {each.name for each in graph.output}
    for unused in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(unused)


def drop_unread_values(graph: onnx.GraphProto, name: str) -> None:
    """Remove the node that makes the value `name`, if nothing reads what it makes, and then those that only it read; and their constants."""
    left, removed = [name], False
    while left:
        value = left.pop()
        node = next((each for each in graph.node if value in each.output), None)
        used = {each for node in graph.node for each in node.input} | {each.name for each in graph.output}
        if node is not None and not used & set(node.output):
            graph.node.remove(node)
            left.extend(node.input)
            removed = True
    if removed:  # what the branches of a graph read is not looked at, and there nothing is removed
        drop_unread(graph)
