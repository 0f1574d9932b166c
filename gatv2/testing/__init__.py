"""Hypothesis strategies and assertions for attention over graphs, for our layers and for yours.

The strategies need Hypothesis: `pip install gatv2-layers[testing]`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from gatv2.optional import require
from gatv2.testing.assertions import (
    assert_agrees,
    assert_rows_sum_to_one,
    edges_to_dense,
    largest_error,
    permuted,
    value_and_gradients,
)

if TYPE_CHECKING:
    from gatv2.testing.strategies import (
        BATCH_SHAPES,
        HEAD_SHAPES,
        SIZES,
        AttentionInputs,
        attention_inputs,
        edge_indices,
        masks,
    )

__all__ = [
    "BATCH_SHAPES",
    "HEAD_SHAPES",
    "SIZES",
    "AttentionInputs",
    "assert_agrees",
    "assert_rows_sum_to_one",
    "attention_inputs",
    "edge_indices",
    "edges_to_dense",
    "largest_error",
    "masks",
    "permuted",
    "value_and_gradients",
]


if not TYPE_CHECKING:  # for a type checker, a module with this function has every name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        require("hypothesis", extra="testing", needed_for=f"{__name__}.{name}")
        return getattr(import_module("gatv2.testing.strategies"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
