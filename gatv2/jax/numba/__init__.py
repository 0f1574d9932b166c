"""The fused CPU kernels, called from JAX."""
