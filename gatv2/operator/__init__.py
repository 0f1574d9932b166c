"""A fused kernel as a PyTorch operator, whatever toolchain compiles it."""
