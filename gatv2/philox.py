"""Constants of Philox4x32-10: one list for PyTorch, JAX, Numba and Triton. Imports nothing of gatv2.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
WORDS_PER_COUNTER = 4
"""A counter gives four words, which serve four heads."""
