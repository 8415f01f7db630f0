"""Weights that were rounded for the network that they stand in, and how they come into its graph.

They are floats that stand on their steps already: the largest of each row is the largest integer, so the quantizer finds the same steps and integers.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeport_export.rewrites.graph import GraphEditor

from .product_sums import ProductSums

SUFFIX = ".recovered"  # of a constant


@dataclass(frozen=True, kw_only=True)
class RecoveredWeights:
    """`before`: the float weights, as the passes for integer kernels have laid them out; `weights`: these on their steps. `added`: what is then
    added to each sum; None if that stays as it is."""

    before: NDArray[np.float32]
    weights: NDArray[np.float32]
    added: NDArray[np.float32] | None


Recovered = Mapping[str, RecoveredWeights]  # by the product's name
NOTHING: Recovered = {}


def put_in_place(editor: GraphEditor, recovered: Recovered, products: frozenset[str]) -> None:
    """Give the products of the graph their recovered weights. One that the passes have laid out otherwise keeps its own: it was not rounded for that."""
    for node in [each for each in editor.nodes if each.name in products and each.name in recovered]:
        found, sums = recovered[node.name], ProductSums.of(editor, node)
        if sums is None or not np.array_equal(sums.weights, found.before):
            continue
        made = editor.builder(node.name)
        editor.set_input(node, 1, made.constant(".weights" + SUFFIX, found.weights))
        if found.added is not None and sums.added_by is not None:
            adding, place = sums.added_by
            added = made.constant(".added" + SUFFIX, found.added)
            editor.set_inputs(adding, [*adding.input[:place], added, *adding.input[place + 1 :]])
    if recovered:
        editor.remove_unread()


def recovered_sha256(recovered: Recovered) -> str:
    """Over the name and the bytes of everything that was recovered."""
    digest = hashlib.sha256()
    for name, found in sorted(recovered.items()):
        digest.update(name.encode() + found.weights.tobytes() + (b"" if found.added is None else found.added.tobytes()))
    return digest.hexdigest()
