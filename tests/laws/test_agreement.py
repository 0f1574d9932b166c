"""Every kernel gives the values and the gradients of the dense reference in float64."""

from typing import Any

import pytest
import torch
from attention import BIAS, attention_over, by, tensors_of, with_or_without_bias
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatv2 import GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.dispatch import Kernel
from gatv2.testing import (
    AttentionInputs,
    assert_agrees,
    edges_to_dense,
    masks,
    value_and_gradients,
)


def attend(inputs: AttentionInputs, **options: Any) -> list[Tensor]:
    """Value and gradients to query, key, attn and a bias."""
    function = attention_over(inputs.mask, BIAS, seed=inputs.seed, **options)
    return value_and_gradients(function, tensors_of(inputs), inputs.cotangent)


@given(
    inputs=with_or_without_bias(),
    dropout=st.sampled_from((0.0, 0.3, 0.9)),
    slope=st.sampled_from((0.2, 0.0, 1.0, -0.5)),
)
@settings(max_examples=2 * settings().max_examples)
def test_values_and_gradients(
    kernel: Kernel, dtype: torch.dtype, inputs: AttentionInputs, dropout: float, slope: float
) -> None:
    options: dict[str, Any] = {"dropout": dropout, "negative_slope": slope}
    exact = attend(inputs.to(dtype).to(torch.float64), backend="dense", kernel="torch", **options)
    reference = attend(inputs.to(dtype), backend="dense", kernel="torch", **options)
    actual = attend(inputs.to(dtype), **by(kernel), **options)
    for a, e, r in zip(actual, exact, reference, strict=True):
        assert a.dtype == dtype
        assert_agrees(a, e, r)


@given(inputs=with_or_without_bias(mask_has_batch=False))
def test_returned_attention_and_its_gradients(
    kernel: Kernel, dtype: torch.dtype, inputs: AttentionInputs
) -> None:
    """The coefficients are those of the reference, and a cotangent on them reaches every input."""

    def outcome(precision: torch.dtype, backend: Any, kernel: str) -> list[Tensor]:
        data = inputs.to(dtype).to(precision)
        generator = torch.Generator().manual_seed(1)

        attend = attention_over(
            data.mask,
            BIAS,
            dropout=0.4,
            seed=data.seed,
            backend=backend,
            kernel=kernel,
            return_attention=True,
        )

        def function(*tensors: Tensor) -> Tensor:
            out, alpha = attend(*tensors)
            if backend == "sparse":
                n_queries, n_keys = data.mask.shape[-3:-1]
                edge_index = data.mask.any(-1).nonzero().T
                alpha = edges_to_dense(alpha, edge_index, (n_queries, n_keys))
            weights = torch.randn(alpha.shape, generator=generator, dtype=torch.float64)
            parts = ((out * data.cotangent).flatten(), (alpha * weights.to(precision)).flatten())
            return torch.cat(parts)

        size = data.cotangent.numel() + data.query[..., 0].numel() * data.key.shape[-3]
        ones = torch.ones(size, dtype=precision)
        return value_and_gradients(function, tensors_of(data), ones)

    exact = outcome(torch.float64, "dense", "torch")
    reference = outcome(dtype, "dense", "torch")
    actual = outcome(dtype, kernel.backend, kernel.name)
    for a, e, r in zip(actual, exact, reference, strict=True):
        assert_agrees(a, e, r)


@pytest.mark.parametrize("layer_class", [GraphAttentionV2Layer, GraphAttentionLayer])
@given(data=st.data())
def test_layers_agree_in_training(
    layer_class: type[GraphAttentionV2Layer], dtype: torch.dtype, data: st.DataObject
) -> None:
    """One seed and one state dict give one training step, whatever the backend, parameters included."""
    n_heads, n_nodes = data.draw(st.sampled_from((1, 3))), data.draw(st.sampled_from((2, 5, 11)))
    is_concat, share_weights = data.draw(st.booleans()), data.draw(st.booleans())
    mask = data.draw(masks(n_nodes, n_nodes))
    torch.manual_seed(data.draw(st.integers(0, 2**32)))
    layer = layer_class(7, 6, n_heads, is_concat, share_weights=share_weights, dtype=dtype)
    h = torch.randn(n_nodes, 7, dtype=dtype)
    cotangent = torch.randn(n_nodes, 6, dtype=dtype)

    def step(backend: Any, dtype: torch.dtype) -> list[Tensor]:
        copy = layer_class(
            7, 6, n_heads, is_concat, share_weights=share_weights, backend=backend, dtype=dtype
        )
        copy.load_state_dict(layer.state_dict())
        torch.manual_seed(5)
        names = [name for name, _ in copy.named_parameters()]

        def function(h: Tensor, *parameters: Tensor) -> Tensor:
            given_parameters = dict(zip(names, parameters, strict=True))
            result = torch.func.functional_call(copy, given_parameters, (h, mask))
            assert isinstance(result, Tensor)
            return result

        parameters = [p.detach() for p in copy.parameters()]
        return value_and_gradients(function, [h.to(dtype), *parameters], cotangent.to(dtype))

    exact = step("dense", torch.float64)
    reference = step("dense", dtype)
    for a, e, r in zip(step("sparse", dtype), exact, reference, strict=True):
        assert_agrees(a, e, r)
