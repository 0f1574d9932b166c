"""What every fused kernel is told besides arrays."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """What is static in a call of a fused kernel."""

    negative_slope: float
    dropout: float
    with_alpha: bool
