"""Kernels for GPUs in Pallas, lowered by Triton: what a program does with the edges of a row."""
