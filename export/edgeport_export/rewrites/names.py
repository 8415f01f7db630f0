"""Names that the traced graph, its rewrites and PyTorch's reference agree on."""

ROOT = "network"  # attribute of ExportWrapper that holds the user's module: its weights are called "network.…" in the graph
WRAPPER = "edgeport/"  # prefix of nodes that belong to no module of the user's: normalization, layout, rounding, and what rewrites add
LEVELS_SUFFIX = ".levels"  # of the value that holds a pixel output before rounding, in levels 0..255


def levels_name(output: str) -> str:
    """The name of a pixel output's value before rounding."""
    return output + LEVELS_SUFFIX


def is_wrapper_node(name: str) -> bool:
    """Whether a node of this name stands outside the user's network."""
    return name.startswith(WRAPPER)
