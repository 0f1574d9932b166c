"""Attention over a mask, in JAX."""
