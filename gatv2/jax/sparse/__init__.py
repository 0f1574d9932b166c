"""Attention over a list of edges, in JAX."""
