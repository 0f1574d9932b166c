"""One graph over several processes: each holds a part, and fetches the keys that its edges need."""

from gatv2.distributed.attention import gatv2_attention
from gatv2.distributed.partition import Partition

__all__ = ["Partition", "gatv2_attention"]
