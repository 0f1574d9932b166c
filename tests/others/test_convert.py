"""Checkpoints of DGL, of the tutorial and of the paper's code compute what they did, or are refused.

Their layers are written here once more, as little of them as their checkpoints and results need.
"""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch_geometric.nn import GATv2Conv
from torch_geometric.utils import add_self_loops, remove_self_loops, softmax

from gatv2 import GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.convert import from_dgl, from_labml, from_official, from_pyg, to_dgl, to_pyg
from gatv2.testing import SIZES, assert_agrees, edge_indices, masks, value_and_gradients


def attend(source: Tensor, target: Tensor, attn: Tensor, edges: Tensor) -> Tensor:
    """Attention of targets over sources by edges (source, target): `[n_targets, H, F]`."""
    pair = source[edges[0]] + target[edges[1]]
    scores = (leaky_relu(pair, 0.2) * attn).sum(-1, keepdim=True)
    alpha = softmax(scores, edges[1], num_nodes=len(target))
    return torch.zeros_like(target).index_add(0, edges[1], alpha * source[edges[0]])


class OfDGL(nn.Module):
    """DGL's `GATv2Conv`: the heads are left apart; bias of the projections and of the residual."""

    def __init__(
        self, in_src: int, in_dst: int, n_hidden: int, n_heads: int, bias: bool, residual: bool
    ) -> None:
        super().__init__()
        self.attn = nn.Parameter(torch.randn(1, n_heads, n_hidden))
        self.fc_src = nn.Linear(in_src, n_heads * n_hidden, bias=bias)
        self.fc_dst = nn.Linear(in_dst, n_heads * n_hidden, bias=bias)
        self.res_fc = None
        if residual:
            is_linear = in_dst != n_hidden
            self.res_fc = (
                nn.Linear(in_dst, n_heads * n_hidden, bias) if is_linear else nn.Identity()
            )

    def forward(self, edges: Tensor, h_src: Tensor, h_dst: Tensor) -> Tensor:
        n_heads, n_hidden = self.attn.shape[1:]
        source, target = (
            linear(h).unflatten(-1, (n_heads, n_hidden))
            for linear, h in ((self.fc_src, h_src), (self.fc_dst, h_dst))
        )
        out = attend(source, target, self.attn, edges)
        return out if self.res_fc is None else out + self.res_fc(h_dst).view(len(out), -1, n_hidden)


@st.composite
def dgl_cases(draw: st.DrawFn) -> tuple[OfDGL, bool, Tensor, Tensor, Tensor]:
    in_src, in_dst = draw(st.sampled_from(((3, 3), (3, 5), (4, 4))))
    n_src, n_dst = draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES))
    residual = draw(st.booleans())
    torch.manual_seed(draw(st.integers(0, 2**32)))
    theirs = OfDGL(in_src, in_dst, 4, draw(st.sampled_from((1, 2))), draw(st.booleans()), residual)
    edges = draw(edge_indices(n_src, n_dst)).long()
    h = torch.randn(n_src, in_src).double(), torch.randn(n_dst, in_dst).double()
    return theirs.double(), residual, edges, *h


@given(case=dgl_cases())
def test_dgl(case: tuple[OfDGL, bool, Tensor, Tensor, Tensor]) -> None:
    theirs, residual, edges, h_src, h_dst = case
    layer = from_dgl(theirs.state_dict(), residual=residual)
    cotangent = torch.randn(len(h_dst), layer.out_features).double()
    actual = value_and_gradients(lambda *h: layer(h, edges), (h_src, h_dst), cotangent)
    expected = value_and_gradients(
        lambda *h: theirs(edges, *h).flatten(1), (h_src, h_dst), cotangent
    )
    for a, e in zip(actual, expected, strict=True):
        assert_agrees(a, e)
    back = to_dgl(layer)
    assert back.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back[name], tensor)
    theirs.load_state_dict(back)
    # as many parameters to train, so that training goes on as it would have
    n_parameters = sum(p.numel() for p in theirs.parameters())
    assert n_parameters == sum(p.numel() for p in layer.parameters() if p.requires_grad)


def test_dgl_shared_weights_and_prefix() -> None:
    theirs = OfDGL(3, 3, 4, 2, bias=True, residual=False)
    theirs.fc_dst = theirs.fc_src
    state = {f"gat.{name}": tensor for name, tensor in theirs.state_dict().items()}
    layer = from_dgl(state, share_weights=True, prefix="gat.")
    assert layer.linear_l is layer.linear_r
    assert to_dgl(layer).keys() == theirs.state_dict().keys()


def of_labml(state: dict[str, Tensor], h: Tensor, mask: Tensor, swapped: bool) -> Tensor:
    """The tutorial's result `[n, H, F]`, by its formula or as its code computes it."""
    attn = state["attn.weight"]
    g_l, g_r = (
        (h @ state[f"linear_{side}.weight"].T).unflatten(-1, (-1, attn.shape[1])) for side in "lr"
    )
    query, key = (g_r, g_l) if swapped else (g_l, g_r)
    scores = (leaky_relu(query.unsqueeze(1) + key.unsqueeze(0), 0.2) * attn).sum(-1)
    alpha = scores.masked_fill(~mask, -torch.inf).softmax(1)
    return torch.einsum("ijh,jhf->ihf", alpha, g_r)


def labml_state(shared: bool) -> dict[str, Tensor]:
    weight = torch.randn(8, 3).double()
    return {
        "linear_l.weight": weight,
        "linear_r.weight": weight if shared else torch.randn(8, 3).double(),
        "attn.weight": torch.randn(1, 4).double(),
    }


@given(mask=masks(5, 5), is_concat=st.booleans(), swapped=st.booleans())
def test_labml(mask: Tensor, is_concat: bool, swapped: bool) -> None:
    mask = mask | torch.eye(5, dtype=torch.bool).unsqueeze(-1)  # it gives NaN for rows without keys
    h = torch.randn(5, 3).double()
    state = labml_state(shared=swapped)
    layer = from_labml(state, is_concat=is_concat, scores=None if swapped else "formula").eval()
    cotangent = torch.randn(5, layer.out_features).double()

    def theirs(h: Tensor) -> Tensor:
        out = of_labml(state, h, mask, swapped)
        return out.flatten(1) if is_concat else out.mean(1)

    actual = value_and_gradients(lambda h: layer(h, mask), [h], cotangent)
    for a, e in zip(actual, value_and_gradients(theirs, [h], cotangent), strict=True):
        assert_agrees(a, e)
    assert layer.share_weights == swapped


def test_labml_swapped_scores_are_another_function() -> None:
    """What the refusal says: the two differ, whichever way our matrices are put."""
    state, h, mask = labml_state(shared=False), torch.randn(5, 3).double(), torch.ones(5, 5, 1) > 0
    expected = of_labml(state, h, mask, swapped=True).flatten(1)
    exchanged = state | {
        "linear_l.weight": state["linear_r.weight"],
        "linear_r.weight": state["linear_l.weight"],
    }
    for guess in (state, exchanged):
        out = from_labml(guess, scores="formula").eval()(h, mask)
        assert not torch.allclose(out, expected)


def of_official(state: dict[str, Tensor], h: Any, edges: Tensor, loops: bool) -> Tensor:
    """The result of the paper's `GAT2Conv`: `lin_r` is used for the targets of a pair alone."""
    att, n_heads = state["att"], state["att"].shape[1]

    def project(side: str, h: Tensor) -> Tensor:
        out = torch.nn.functional.linear(h, state[f"lin_{side}.weight"], state[f"lin_{side}.bias"])
        heads: Tensor = out.unflatten(-1, (n_heads, -1))
        return heads

    if isinstance(h, Tensor):
        source = target = project("l", h)
    else:
        source, target = project("l", h[0]), project("r", h[1])
    if loops:
        edges = add_self_loops(remove_self_loops(edges)[0], num_nodes=len(target))[0]
    out: Tensor = attend(source, target, att, edges).flatten(1) + state["bias"]
    return out


@given(edges=edge_indices(5, 5), loops=st.booleans(), is_pair=st.booleans())
def test_official(edges: Tensor, loops: bool, is_pair: bool) -> None:
    state = GATv2Conv(3, 4, heads=2).double().state_dict()  # the same names
    for tensor in state.values():
        tensor.normal_()
    first, second = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    h: Any = (first, second) if is_pair else first
    expected = of_official(state, h, edges.long(), loops)
    layer = from_official(state, add_self_loops=loops, share_weights=not is_pair)
    assert_agrees(layer(h, edges), expected)
    shared = state | {"lin_r.weight": state["lin_l.weight"], "lin_r.bias": state["lin_l.bias"]}
    layer = from_official(shared, add_self_loops=loops)
    assert layer.share_weights
    assert_agrees(layer(h, edges), of_official(shared, h, edges.long(), loops))


def layer(*sizes: Any, **options: Any) -> GraphAttentionV2Layer:
    return GraphAttentionV2Layer(*(sizes or (3, 8, 2)), **options)


def with_output_bias() -> GraphAttentionV2Layer:
    made = layer(bias=True)
    nn.init.ones_(made.bias)  # type: ignore[arg-type]
    return made


ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "not theirs": (lambda: from_pyg(layer()), TypeError, "must be a torch_geometric.nn.GATv2Conv"),
    "not ours": (
        lambda: to_pyg(GraphAttentionLayer(3, 8, 2)),  # type: ignore[arg-type]
        TypeError,
        "`layer` must be a GraphAttentionV2Layer; got GraphAttentionLayer",
    ),
    "another aggregation": (
        lambda: from_pyg(GATv2Conv(3, 4, aggr="max")),
        ValueError,
        "our layer sums over the keys; `conv` has aggr='max'",
    ),
    "their flow on two sets of nodes": (
        lambda: from_pyg(GATv2Conv((3, 5), 4, flow="target_to_source")),
        ValueError,
        "`GATv2Conv` does not work on a bipartite graph with flow='target_to_source'",
    ),
    "our flow on two sets of nodes": (
        lambda: to_pyg(layer((3, 5), 8, 2)),
        ValueError,
        "set `flow` to 'source_to_target'",
    ),
    "sizes unknown": (lambda: from_pyg(GATv2Conv(-1, 4)), ValueError, "call it once"),
    "our sizes unknown": (lambda: to_pyg(layer(-1, 8, 2)), ValueError, "call it once"),
    "bias of projections, PyG": (
        lambda: to_pyg(layer(bias="projections")),
        ValueError,
        "the layer has bias='projections'",
    ),
    "a name is missing": (
        lambda: from_dgl({"attn": torch.zeros(1, 2, 4)}, prefix="gat."),
        KeyError,
        "lacks ['gat.attn', 'gat.fc_src.weight', 'gat.fc_dst.weight']; it has ['attn']",
    ),
    "residual not told": (
        lambda: from_dgl(OfDGL(3, 3, 4, 2, bias=True, residual=True).state_dict()),
        ValueError,
        "pass residual=True",
    ),
    "residual not there": (
        lambda: from_dgl(OfDGL(3, 3, 4, 2, True, residual=False).state_dict(), residual=True),
        ValueError,
        "the input has 3 features and a head 4",
    ),
    "not shared": (
        lambda: from_dgl(OfDGL(3, 3, 4, 2, True, False).state_dict(), share_weights=True),
        ValueError,
        "share_weights=True, but the two matrices differ",
    ),
    "heads averaged, DGL": (
        lambda: to_dgl(layer(3, 8, 2, is_concat=False)),
        ValueError,
        "the layer has is_concat=False",
    ),
    "self-loops, DGL": (
        lambda: to_dgl(layer(add_self_loops=True)),
        ValueError,
        "use `dgl.add_self_loop`",
    ),
    "features of edges, DGL": (
        lambda: to_dgl(layer(edge_dim=5)),
        ValueError,
        "the layer has edge_dim=5",
    ),
    "their flow and reduced features": (
        lambda: from_pyg(GATv2Conv(3, 4, edge_dim=5, flow="target_to_source")),
        ValueError,
        "reduces features of edges over their sources, not over their targets,",
    ),
    "bias of the output, DGL": (
        lambda: to_dgl(with_output_bias()),
        ValueError,
        "the layer's `bias` is not zero",
    ),
    "residual, DGL": (
        lambda: to_dgl(layer(4, 8, 2, residual=True)),
        ValueError,
        "DGL's residual is the identity",
    ),
    "scores not told": (
        lambda: from_labml(labml_state(shared=False)),
        ValueError,
        "Pass scores='formula' if the checkpoint was trained with the first",
    ),
    "scores swapped": (
        lambda: from_labml(labml_state(shared=False), scores="swapped"),
        ValueError,
        "the formula has one matrix for both",
    ),
    "scores unknown": (
        lambda: from_labml(labml_state(shared=True), scores="other"),  # type: ignore[arg-type]
        ValueError,
        "`scores` must be 'formula', 'swapped' or None; got 'other'",
    ),
    "sharing not told": (
        lambda: from_official(GATv2Conv(3, 4).state_dict(), add_self_loops=False),
        ValueError,
        "`lin_l` and `lin_r` differ: pass share_weights=True",
    ),
}


@pytest.mark.parametrize(("call", "error", "text"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert text in str(raised.value)
