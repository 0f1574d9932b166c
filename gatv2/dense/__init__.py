"""Attention over a dense mask."""
