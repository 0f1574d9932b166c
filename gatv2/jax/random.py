"""Philox4x32-10 in 32-bit arithmetic: the dropout mask of `gatv2.random`, bit for bit.

JAX has 64-bit integers only if they are enabled, so the 64-bit products of Philox are put together
from 16-bit halves. For one seed the same edges are dropped as in PyTorch.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.arrays import ArrayLike
from gatv2.jax.blocks import lead
from gatv2.philox import MULTIPLIER_0, MULTIPLIER_1, ROUNDS, WEYL_0, WEYL_1, WORDS_PER_COUNTER

Seed = int | np.integer | ArrayLike | None
"""A seed of 64 bits; see :func:`as_seed`."""
Words = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def philox_4x32_10(counter: Words, key: tuple[jax.Array, jax.Array]) -> Words:
    """Ten rounds of Philox on four 32-bit counter words, keyed by two 32-bit words.

    Args:
        counter: four uint32 arrays that broadcast together.
        key: two uint32 arrays that broadcast with them.

    Returns:
        Four uint32 arrays of random words.

    Example:
        The known answer that the authors publish for an all-zero counter and key:

        >>> zero = jnp.uint32(0)
        >>> [hex(word) for word in philox_4x32_10((zero, zero, zero, zero), (zero, zero))]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high_0, low_0 = _multiply(c0, MULTIPLIER_0)
        high_1, low_1 = _multiply(c2, MULTIPLIER_1)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = k0 + np.uint32(WEYL_0), k1 + np.uint32(WEYL_1)
    return c0, c1, c2, c3


def keep_mask(
    seed: jax.Array,
    dropout: float,
    query: jax.Array,
    key: jax.Array,
    n_heads: int,
    *,
    multiplicity: jax.Array,
    batch: jax.Array,
) -> jax.Array:
    """Which attention coefficients survive dropout; see :func:`gatv2.random.keep_mask`.

    Args:
        seed: uint32 `[2]`, the low and the high word of the seed.
        dropout: probability of a drop, in [0, 1).
        query: index of each edge's query in its own graph.
        key: index of each edge's key in its own graph.
        n_heads: number of heads.
        multiplicity: 0 for the first of parallel edges, 1 for the second, and so on.
        batch: index of the batch element.

    Returns:
        bool, the broadcast shape of `query`, `key`, `multiplicity` and `batch`, with `n_heads` behind.

    Example:
        >>> zero = jnp.uint32(0)
        >>> seed = as_seed(7)
        >>> keep_mask(seed, 0.5, jnp.arange(3), zero, 2, multiplicity=zero, batch=zero).tolist()
        [[True, True], [False, True], [False, False]]
    """
    n_groups = -(-n_heads // WORDS_PER_COUNTER)
    ndim = max(index.ndim for index in (query, key, multiplicity, batch))
    query, key, multiplicity, batch = (
        lead(index.astype(jnp.uint32), ndim)[..., None]
        for index in (query, key, multiplicity, batch)
    )
    group = batch * np.uint32(n_groups) + lead(jnp.arange(n_groups, dtype=jnp.uint32), ndim + 1)
    words = philox_4x32_10((query, key, multiplicity, group), (seed[0], seed[1]))
    stacked = jnp.stack(jnp.broadcast_arrays(*words), axis=-1)
    flat = stacked.reshape(*stacked.shape[:-2], n_groups * WORDS_PER_COUNTER)
    return flat[..., :n_heads] >= np.uint32(int(dropout * 2**32))


def as_seed(seed: Seed) -> jax.Array:
    """A seed as two uint32 words, low and high.

    Args:
        seed: an int of 64 bits, an integer scalar, or the words themselves, uint32 `[2]`.

    Raises:
        TypeError: it is no integer.
        ValueError: it is too large, or has another shape.

    Example:
        >>> as_seed(-1).tolist() == [2**32 - 1, 2**32 - 1]
        True
    """
    if isinstance(seed, np.ndarray) and seed.ndim == 0 and seed.dtype.kind in "iu":
        seed = int(seed)
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        seed = int(seed)
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"`seed` must fit 64 bits, signed; got {seed}")
        return jnp.asarray(np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], np.uint32))
    if not isinstance(seed, jax.Array | np.ndarray) or not jnp.issubdtype(seed.dtype, jnp.integer):
        got = getattr(seed, "dtype", type(seed).__name__)
        hint = ": `gatv2.jax.seed_from_key(key)` draws one from a key" if "key" in str(got) else ""
        raise TypeError(
            f"`seed` must be an int, an integer scalar, or uint32 words (low, high); got {got}{hint}"
        )
    seed = jnp.asarray(seed)
    if seed.shape == (2,) and seed.dtype == jnp.uint32:
        return seed
    if seed.ndim:
        raise ValueError(
            "`seed` must be an int, an integer scalar, or uint32 words (low, high); "
            f"got {seed.dtype} with shape {seed.shape}"
        )
    shift = min(32, 8 * seed.dtype.itemsize - 1)  # of a short integer, the sign fills the high word
    is_signed = jnp.issubdtype(seed.dtype, jnp.signedinteger)
    high = seed >> shift if shift == 32 or is_signed else jnp.zeros_like(seed)
    return jnp.stack((seed.astype(jnp.uint32), high.astype(jnp.uint32)))


def check_key(rng: object, name: str = "rng") -> None:
    """Raise a TypeError unless the argument `name` is a key of JAX, of the new kind or the old."""
    if not isinstance(rng, jax.Array | np.ndarray):
        got = type(rng).__name__
    elif jnp.issubdtype(rng.dtype, jax.dtypes.prng_key) or (rng.dtype == np.uint32 and rng.ndim):
        return
    else:
        got = f"{rng.dtype} with shape {rng.shape}"
    raise TypeError(
        f"`{name}` must be a JAX key, such as `jax.random.key(0)`; got {got}: make a key of a number, "
        "or pass it to a layer as `seed=`, for dropout"
    )


def seed_from_key(rng: jax.Array) -> jax.Array:
    """Draw the seed of a dropout mask from a JAX key: uint32 words (low, high), 64 bits together.

    Raises:
        TypeError: `rng` is no key.

    Example:
        >>> seed_from_key(jax.random.key(0)).shape
        (2,)
    """
    check_key(rng)
    return jax.random.bits(rng, (2,), jnp.uint32)


def _multiply(x: jax.Array, constant: int) -> tuple[jax.Array, jax.Array]:
    """High and low word of the 64-bit product of 32-bit words."""
    x_low, x_high = x & 0xFFFF, x >> 16
    c_low, c_high = np.uint32(constant & 0xFFFF), np.uint32(constant >> 16)
    low, middle = x_low * c_low, x_high * c_low
    carry = (low >> 16) + (middle & 0xFFFF) + x_low * c_high  # less than 2**32: no overflow
    high = x_high * c_high + (middle >> 16) + (carry >> 16)
    return high, x * np.uint32(constant)
