"""What processes must have in common when they attend together, and how they see that they do."""

import math
from functools import lru_cache
from typing import NamedTuple, Self

import torch
from torch import Tensor

from gatv2.distributed.agreement import Header, Meeting, by_ranks
from gatv2.distributed.part import PartData
from gatv2.graph.edge_inputs import EdgeInputs

_N_DIRECTIONS = 4


class Call(NamedTuple):
    """The kind of a call of attention over a part; equal in all processes."""

    what: str
    graph: str
    """The split that the part is of."""
    dtype: torch.dtype
    batch: tuple[int, ...]
    n_heads: int
    n_hidden: int
    edge_dim: int | None
    bias_heads: int | None
    """The last dimension of `score_bias`."""
    negative_slope: float
    dropout: float
    seed: str
    """Whether one was given, which must be the same, or is drawn."""
    kernel: str
    autocast: torch.dtype | None
    gradients: bool
    """Whether the keys are differentiated, so that gradients will be exchanged."""

    @classmethod
    def of(
        cls,
        key: Tensor,
        part: PartData,
        edges: EdgeInputs | None,
        score_bias: Tensor | None,
        *,
        negative_slope: float,
        dropout: float,
        has_seed: bool,
        kernel: str,
    ) -> Self:
        """The kind of a call with these arguments."""
        *batch, _, n_heads, n_hidden = key.shape
        device = key.device.type
        is_autocast = torch.is_autocast_enabled(device)
        return cls(
            what="attention",
            graph=part.split_id,
            dtype=key.dtype,
            batch=tuple(batch),
            n_heads=n_heads,
            n_hidden=n_hidden,
            edge_dim=None if edges is None else edges.projection.shape[-1],
            bias_heads=None if score_bias is None else score_bias.shape[-1],
            negative_slope=negative_slope,
            dropout=dropout,
            seed="given" if has_seed and dropout > 0 else "drawn",
            kernel=kernel,
            autocast=torch.get_autocast_dtype(device) if is_autocast else None,
            gradients=torch.is_grad_enabled() and key.requires_grad,
        )

    def meet(self, attn: Tensor, seed: Tensor | None, part: PartData) -> Meeting:
        """Begin to compare this call with those of the other processes."""
        number = 0 if seed is None else int(seed)
        return Meeting(self, part.group, seed=number, weights=_sketch(attn))

    def common_seed(self, headers: list[Header]) -> int:
        """The seed of all processes' headers: that which was given, or rank 0's.

        Raises:
            ValueError: the processes were given different seeds, or call different layers.
        """
        seeds = [header.seed for header in headers]
        if self.seed == "given" and len(set(seeds)) > 1:
            raise ValueError(
                f"`seed` must be the same in all processes, but it is {by_ranks(seeds)}"
            )
        sketches = [header.weights for header in headers]
        tolerance = math.sqrt(torch.finfo(self.dtype).eps)
        is_other = [not _is_close(sketch, sketches[0], tolerance) for sketch in sketches]
        if any(is_other):
            others = ", ".join(str(rank) for rank, is_so in enumerate(is_other) if is_so)
            raise ValueError(
                f"`attn` must be the same in all processes, but that of rank {others} is not that of "
                "rank 0: call the same layers in the same order in all processes, with the same "
                "parameters, as DistributedDataParallel gives them"
            )
        return seeds[0]


@lru_cache
def _directions(n: int, device: torch.device) -> Tensor:
    frequency = torch.arange(1, _N_DIRECTIONS + 1, dtype=torch.float64, device=device)
    position = torch.arange(n, dtype=torch.float64, device=device)
    return torch.outer(frequency, position).cos()


def _sketch(attn: Tensor) -> tuple[float, ...]:
    """Few numbers that tell the parameters of one layer from those of another: norm, and directions.

    Not a digest, as processes on different machines may round differently.
    """
    flat = attn.detach().flatten().double()
    along = torch.mv(_directions(flat.numel(), flat.device), flat)
    return float(flat.norm()), *along.tolist()


def _is_close(a: tuple[float, ...], b: tuple[float, ...], tolerance: float) -> bool:
    """Whether two sketches may be of equal parameters, by the norm of those of `b`."""
    if not all(map(math.isfinite, (*a, *b))):
        return all(map(math.isfinite, a)) == all(map(math.isfinite, b))
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) <= tolerance * b[0]
