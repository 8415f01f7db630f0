"""Replacements that make a graph right at every size, and fast. One file for each; none of them knows any particular network.

`translations`: an aten operator as ONNX, while a network is traced. `float_graph`: exact passes over the fp32 graph.
`int8_graph`: passes that let integer kernels run. All passes change a `GraphEditor`'s graph and return a `PassResult`.
"""
