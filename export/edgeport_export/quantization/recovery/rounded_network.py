"""The float network and the one whose activations are rounded, side by side, up to any product.

Compensated rounding needs what a product reads in the rounded network while only the products before it have their integers. Weights are floats
here, so that they can be replaced one after another; those that stand on their steps give what integers give.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeport_export.rewrites.graph import GraphEditor

from .product_sums import ProductSums

ROUNDED = "edgeport.rounded."  # prefix of the weights and biases that can be replaced


class RoundedNetwork:
    """`exact`: the graph before the quantizer. `products`: those with constant weights that run as integers, by name, in the graph's order."""

    def __init__(self, exact: onnx.ModelProto, paired: onnx.ModelProto, products: frozenset[str]) -> None:
        """`paired`: the graph with its Q/DQ pairs, of which the weights' are taken out here."""
        self.exact = GraphEditor(exact)
        self.rounded = GraphEditor.of_copy(paired)
        found = {node.name: ProductSums.of(self.exact, node) for node in self.exact.nodes if node.name in products}
        self.products: Mapping[str, ProductSums] = {name: sums for name, sums in found.items() if sums is not None}
        for name, sums in self.products.items():
            self._make_replaceable(name, sums)
        self.rounded.remove_unread()

    def _make_replaceable(self, name: str, sums: ProductSums) -> None:
        nodes, made = {node.name: node for node in self.rounded.nodes}, self.rounded.builder(ROUNDED)
        self.rounded.set_input(nodes[name], 1, made.constant(f"{name}.weights", sums.weights))
        if sums.added_by is not None:
            node, place = nodes[sums.added_by[0].name], sums.added_by[1]
            bias = made.constant(f"{name}.added", sums.added(self.exact).astype(np.float32))
            self.rounded.set_inputs(node, [*node.input[:place], bias, *node.input[place + 1 :]])

    def replace(self, name: str, weights: NDArray[np.float32], added: NDArray[np.float32] | None) -> None:
        """Let a product have other weights and, if it can, other constants added to its sums."""
        self.rounded.set_array(f"{ROUNDED}{name}.weights", weights)
        if added is not None:
            self.rounded.set_array(f"{ROUNDED}{name}.added", added)

    def reads(self, name: str) -> str:
        """The value that a product reads in the rounded network."""
        return next(str(node.input[0]) for node in self.rounded.nodes if node.name == name)
