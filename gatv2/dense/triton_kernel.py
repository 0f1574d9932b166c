"""The fused kernels over a dense mask on the GPU: those of `gatv2.triton`, of its entries as edges."""

from torch import Tensor

from gatv2.operator.arguments import Arguments, Cotangents
from gatv2.triton import passes
from gatv2.triton.launch import Layout, Lists


def forward(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor | None]:
    """(out, log-sum-exp, alpha), as `gatv2.operator.shortcut.Launcher` says."""
    out, lse, alpha = passes.forward(arguments, layout_of(arguments))
    if alpha is not None:
        n_queries, n_keys = out.shape[-3], arguments.key.shape[-3]
        alpha = alpha.unflatten(-2, (n_queries, n_keys))
    return out, lse, alpha


def backward(
    cotangents: Cotangents, arguments: Arguments, *, overwrites: bool = False
) -> tuple[Tensor | None, ...]:
    """Gradients of the features, as `gatv2.operator.shortcut.Launcher` says; overwrites nothing."""
    return passes.backward(cotangents, arguments, layout_of(arguments))


def layout_of(arguments: Arguments) -> Layout:
    """The graph, as the kernels are given it."""
    mask: Tensor = arguments.adjacency.mask
    batch = arguments.query.shape[arguments.n_mapped : -3]
    if mask.shape[:-3].numel() > 1:
        mask = mask.expand(*batch, *mask.shape[-3:])
    else:
        mask = mask.reshape(mask.shape[-3:])
    mask = mask.flatten(-3, -2).contiguous()
    no_lists = Lists(None, None, None)
    return Layout(
        n_edges=mask.shape[-2],
        by_query=no_lists,
        by_key=lambda: no_lists,
        query=lambda: None,
        mask=mask,
        feature_row=None,
        query_id=None,
        key_id=None,
    )
