"""What the fused CPU kernels share, compiled by Numba."""
