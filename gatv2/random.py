"""Philox4x32-10: random numbers that are a pure function of a seed and a position.

Dropout on attention needs one random number for each (query, key, head). A counter-based generator
computes it from the position itself, so that every backend drops the same edges for one seed, in any
order of edges and on any number of threads, and nothing is stored for the backward pass.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

import operator

import torch
from torch import Tensor

from gatv2.philox import MULTIPLIER_0, MULTIPLIER_1, ROUNDS, WEYL_0, WEYL_1, WORDS_PER_COUNTER

Words = tuple[Tensor, Tensor, Tensor, Tensor]

_LOW_32_BITS = 0xFFFFFFFF


def philox_4x32_10(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Ten rounds of Philox on four 32-bit counter words, keyed by two 32-bit words.

    Args:
        counter: four int64 tensors that broadcast together, values in [0, 2**32).
        key: two int64 tensors that broadcast with them, values in [0, 2**32).

    Returns:
        Four int64 tensors of random words in [0, 2**32).

    Example:
        The known answer that the authors publish for an all-zero counter and key:

        >>> zero = torch.tensor(0)
        >>> [hex(word) for word in philox_4x32_10((zero, zero, zero, zero), (zero, zero))]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high_0, low_0 = _multiply(c0, MULTIPLIER_0)
        high_1, low_1 = _multiply(c2, MULTIPLIER_1)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = k0 + WEYL_0 & _LOW_32_BITS, k1 + WEYL_1 & _LOW_32_BITS
    return c0, c1, c2, c3


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low word of the product of a 32-bit word and an odd 32-bit multiplier.

    The product may exceed int64, and compiled code may assume that none does. With the word moved by
    2**31 it fits: word * multiplier = shifted + (multiplier - 1) * 2**31, whose second term is a
    multiple of 2**32.
    """
    shifted = (word - 2**31) * multiplier + 2**31
    return (shifted >> 32) + (multiplier >> 1), shifted & _LOW_32_BITS


def as_seed(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """A seed as a 0-d int64 tensor; drawn from PyTorch's generator if None.

    Raises:
        TypeError: neither an int nor a tensor.
        ValueError: an int that does not fit, or a tensor of another dtype or shape.
    """
    if seed is None:
        return torch.randint(2**63 - 1, (), device=device)
    if isinstance(seed, int):
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"`seed` must lie in [-2**63, 2**63); got {seed}")
        return torch.full((), seed, dtype=torch.int64, device=device)  # made there, not copied
    if not isinstance(seed, Tensor):
        try:
            return as_seed(operator.index(seed), device)  # NumPy's integers
        except TypeError:
            raise TypeError(
                f"`seed` must be an int or a 0-d int64 tensor; got {type(seed).__name__}"
            ) from None
    if seed.dtype != torch.int64 or seed.ndim != 0:
        raise ValueError(
            f"`seed` must be an int or a 0-d int64 tensor; got {seed.dtype} with shape "
            f"{tuple(seed.shape)}"
        )
    return seed.to(device)


def keep_mask(
    seed: Tensor,
    dropout: float,
    query: Tensor,
    key: Tensor,
    n_heads: int,
    *,
    multiplicity: Tensor,
    batch: Tensor,
) -> Tensor:
    """Which attention coefficients survive dropout, as a function of seed and position alone.

    The counter is (query, key, multiplicity, batch * ceil(n_heads / 4) + head // 4), and head % 4
    picks one of the four words that a counter gives. A coefficient is dropped if its word is less
    than floor(dropout * 2**32).

    Args:
        seed: int64 scalar; its low and high 32 bits are the key.
        dropout: probability of a drop, in [0, 1).
        query: int64, index of each edge's query in its own graph.
        key: int64, index of each edge's key in its own graph.
        n_heads: number of heads.
        multiplicity: int64, 0 for the first of parallel edges, 1 for the second, and so on.
        batch: int64, index of the batch element.

    Returns:
        bool, the broadcast shape of `query`, `key`, `multiplicity` and `batch`, with `n_heads` behind.

    Example:
        >>> zero = torch.tensor(0)
        >>> keep_mask(torch.tensor(7), 0.5, torch.arange(3), zero, 2, multiplicity=zero, batch=zero)
        tensor([[ True,  True],
                [False,  True],
                [False, False]])
    """
    # a node's number may be of 64 bits: kernels count with the lower half
    query, key = query & _LOW_32_BITS, key & _LOW_32_BITS
    n_groups = -(-n_heads // WORDS_PER_COUNTER)
    group = batch.unsqueeze(-1) * n_groups + torch.arange(n_groups, device=query.device)
    counter = (query.unsqueeze(-1), key.unsqueeze(-1), multiplicity.unsqueeze(-1), group)
    seed_words = (seed & _LOW_32_BITS, seed >> 32 & _LOW_32_BITS)
    words = torch.stack(torch.broadcast_tensors(*philox_4x32_10(counter, seed_words)), dim=-1)
    return words.flatten(-2)[..., :n_heads] >= int(dropout * 2**32)
