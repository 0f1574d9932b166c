"""Hypothesis strategies and assertions for attention over graphs, for our layers and for yours.

Needs Hypothesis: `pip install gatv2-layers[testing]`.
"""

from gatv2.testing.strategies import (
    BATCH_SHAPES,
    HEADS,
    HIDDEN,
    SIZES,
    AttentionInputs,
    assert_agrees,
    assert_rows_sum_to_one,
    attention_inputs,
    edge_indices,
    edges_to_dense,
    masks,
    permuted,
    value_and_gradients,
)

__all__ = [
    "BATCH_SHAPES",
    "HEADS",
    "HIDDEN",
    "SIZES",
    "AttentionInputs",
    "assert_agrees",
    "assert_rows_sum_to_one",
    "attention_inputs",
    "edge_indices",
    "edges_to_dense",
    "masks",
    "permuted",
    "value_and_gradients",
]
