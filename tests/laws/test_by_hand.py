"""A graph of three nodes whose every number can be checked with pencil and paper.

One head, two hidden features, slope 1/4, W_l = W_r = identity, a = (1, 2), and

    h_0 = (1, 0)    h_1 = (0, 1)    h_2 = (-4, 2)

Node 0 attends to 1 and 2, node 1 to 2, and node 2 to none.

    e_01 = a . LeakyReLU(1, 1)  = 1 + 2     = 3
    e_02 = a . LeakyReLU(-3, 2) = -3/4 + 4  = 13/4
    e_12 = a . LeakyReLU(-4, 3) = -1 + 6    = 5

    alpha_01 = 1 / (1 + e^(1/4)),  alpha_02 = 1 - alpha_01,  alpha_12 = 1

    out_0 = alpha_01 (0, 1) + alpha_02 (-4, 2) = (-4 alpha_02, 1 + alpha_02)
    out_1 = (-4, 2)
    out_2 = (0, 0)
"""

import math
from typing import Any

import pytest
import torch
from attention import by

from gatv2 import GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.dispatch import Kernel

H = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-4.0, 2.0]], dtype=torch.float64)
EDGE_INDEX = torch.tensor([[1, 0, 0], [2, 2, 1]])
ALPHA_01 = 1 / (1 + math.exp(0.25))
ALPHA_02 = 1 - ALPHA_01


def layer(layer_class: Any, **options: Any) -> Any:
    made = layer_class(2, 2, 1, leaky_relu_negative_slope=0.25, dtype=torch.float64, **options)
    with torch.no_grad():
        for linear in (made.linear_l, made.linear_r):
            linear.weight.copy_(torch.eye(2))
        for name in made.attention_vectors:
            getattr(made, name).copy_(torch.tensor([[1.0, 2.0]]))
    return made.eval()


def test_gatv2(kernel: Kernel) -> None:
    gatv2 = layer(GraphAttentionV2Layer, **by(kernel))
    out, alpha = gatv2(H, EDGE_INDEX, return_attention=True)
    expected = torch.tensor([[-4 * ALPHA_02, 1 + ALPHA_02], [-4, 2], [0, 0]])
    torch.testing.assert_close(out, expected.double(), rtol=1e-7, atol=1e-7)
    scores = gatv2.attention_scores(H, EDGE_INDEX)
    if kernel.backend == "sparse":  # in the order of the edges given
        assert scores.squeeze().tolist() == [5.0, 3.25, 3.0]
        assert alpha.squeeze().tolist() == pytest.approx([1.0, ALPHA_02, ALPHA_01], rel=1e-14)
    else:
        inf = math.inf
        assert scores.squeeze().tolist() == [[-inf, 3, 3.25], [-inf, -inf, 5], [-inf, -inf, -inf]]
        expected_alpha = [0, ALPHA_01, ALPHA_02, 0, 0, 1, 0, 0, 0]
        assert alpha.flatten().tolist() == pytest.approx(expected_alpha, rel=1e-14)


def test_query_side_is_linear_l_and_value_side_is_linear_r(kernel: Kernel) -> None:
    """With W_l = 0 scores depend on the key alone; with W_r = 0 there is nothing to aggregate."""
    gatv2 = layer(GraphAttentionV2Layer, **by(kernel))
    with torch.no_grad():
        gatv2.linear_l.weight.zero_()
    # e_01 = a . (0, 1) = 2, e_02 = a . (-1, 2) = 3
    share_02 = 1 / (1 + math.exp(-1))
    out = gatv2(H, EDGE_INDEX)
    assert out[0].tolist() == pytest.approx([-4 * share_02, 1 + share_02], rel=1e-14)
    with torch.no_grad():
        gatv2.linear_r.weight.zero_()
    assert gatv2(H, EDGE_INDEX).eq(0).all()


@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_static_control(backend: Any) -> None:
    """e_ij = LeakyReLU(a . h_i + a . h_j), with a . h = (1, 2, 0): 3, 1 and 2."""
    gat = layer(GraphAttentionLayer, backend=backend)
    out = gat(H, EDGE_INDEX)
    share_02 = 1 / (1 + math.exp(2))
    assert out[0].tolist() == pytest.approx([-4 * share_02, 1 + share_02], rel=1e-14)
    scores = gat.attention_scores(H, EDGE_INDEX)
    if backend == "sparse":
        assert scores.squeeze().tolist() == [2.0, 1.0, 3.0]


def test_averaged_heads(kernel: Kernel) -> None:
    """Two heads with a = (1, 2) and a = 0: the second takes the mean of its keys."""
    options: Any = {"is_concat": False, "leaky_relu_negative_slope": 0.25, **by(kernel)}
    averaged = GraphAttentionV2Layer(2, 2, 2, dtype=torch.float64, **options).eval()
    with torch.no_grad():
        for linear in (averaged.linear_l, averaged.linear_r):
            linear.weight.copy_(torch.eye(2).repeat(2, 1))
        averaged.attn.copy_(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    share_02 = (ALPHA_02 + 0.5) / 2
    out = averaged(H, EDGE_INDEX)
    assert out[0].tolist() == pytest.approx([-4 * share_02, 1 + share_02], rel=1e-14)
