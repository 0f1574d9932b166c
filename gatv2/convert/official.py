"""`GAT2Conv` of the paper's code, by its state dict."""

from gatv2.checks import is_same
from gatv2.convert.pyg import our_name, shapes_of
from gatv2.convert.state import State, check_together, layer_of, read_state
from gatv2.layer import GraphAttentionV2Layer


def from_official(
    state_dict: State,
    *,
    add_self_loops: bool,
    share_weights: bool | None = None,
    concat: bool = True,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    prefix: str = "",
) -> GraphAttentionV2Layer:
    """The state dict of `GAT2Conv`, from the code of the paper, as our layer.

    That layer ignores `lin_r` when it is given one tensor of features, whatever its `share_weights`, and
    uses it for the targets of a pair, as in sampled blocks. Where the two matrices differ, the caller
    says which it was. (The paper's ogbn-proteins code uses DGL's names: :func:`from_dgl`.)

    Args:
        state_dict: of the layer, or of a model that holds it.
        add_self_loops: as the layer was made. True by its default; False for the dictionary lookup.
        share_weights: True: trained on one tensor of features; False: on pairs; None where the matrices
            are equal.
        concat: as the layer was made.
        negative_slope: as the layer was made.
        dropout: as the layer was made.
        prefix: what the names of the layer begin with, such as "layers.0.".

    Raises:
        TypeError: `state_dict` holds something else than tensors of one floating-point dtype.
        KeyError: a parameter is missing.
        ValueError: the matrices differ and `share_weights` is None, or shapes contradict one another.

    Example:
        >>> import torch
        >>> weight = torch.randn(128, 128)
        >>> state_dict = {"layers.0.att": torch.randn(1, 1, 128)}
        >>> state_dict |= {f"layers.0.lin_{side}.weight": weight for side in "lr"}
        >>> from_official(state_dict, add_self_loops=False, prefix="layers.0.").share_weights
        True

    Source: dictionary_lookup/gnns/gat2.py of https://github.com/tech-srl/how_attentive_are_gats.
    """
    given = read_state(
        state_dict, prefix, shapes_of(concat), ("att", "lin_l.weight", "lin_r.weight")
    )
    check_together(given, prefix, ("lin_l.bias", "lin_r.bias", "bias"))
    renamed = {our_name(name): x for name, x in given.items()}
    renamed["attn"] = given["att"][0]
    is_shared = all(
        is_same(given[name], given[name.replace("lin_l", "lin_r")])
        for name in given
        if name.startswith("lin_l")
    )
    if share_weights is None and not is_shared:
        raise ValueError(
            "`lin_l` and `lin_r` differ: pass share_weights=True if the layer was trained on one tensor "
            "of features, where it uses `lin_l` alone, or False if on pairs (sampled blocks)"
        )
    if share_weights is not False:
        for name in [name for name in renamed if name.startswith("linear_l.")]:
            renamed[name] = renamed[name.replace("linear_l.", "linear_r.")]
    return layer_of(
        renamed,
        is_concat=concat,
        dropout=dropout,
        leaky_relu_negative_slope=negative_slope,
        share_weights=share_weights is not False,
        add_self_loops=add_self_loops,
        flow="source_to_target",
    )
