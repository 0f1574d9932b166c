"""The score of a pair, as the references compute it. Imports nothing of gatv2."""

import math

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu


def score(pair: Tensor, attn: Tensor, negative_slope: float) -> Tensor:
    """A . LeakyReLU(pair), of `[..., H, F]` and `[H, F]`: `[..., H]`.

    Where it is -inf there is no edge, and no gradient: 0 times an infinite feature would be NaN.
    """
    activated = leaky_relu(pair, negative_slope)
    is_edge = (activated.detach() * attn.detach()).sum(-1) != -math.inf
    scores = (torch.where(is_edge.unsqueeze(-1), activated, 0.0) * attn).sum(-1)
    return torch.where(is_edge, scores, -math.inf)
