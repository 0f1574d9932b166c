"""Attention over a list of edges."""
