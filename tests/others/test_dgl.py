"""DGL's `GATv2Conv`, converted, computes what it did, and so does ours in DGL's class.

DGL's layer is written here once more, as its source has it since version 0.8 and as the file that came
with the paper has it. Where DGL 2.1 is installed its own class is compared too, over its own test graphs
(`pip install --no-deps dgl==2.1.0 pandas`, where there is a wheel).
"""

import sys
import types
import warnings
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from gatv2 import GraphAttentionV2Layer
from gatv2.convert import from_dgl, to_dgl
from gatv2.testing import SIZES, assert_agrees, edge_indices, value_and_gradients


class OfDGL(nn.Module):
    """DGL's `GATv2Conv`: the heads are left apart; bias of the projections and of the residual."""

    def __init__(
        self,
        in_src: int,
        in_dst: int,
        n_hidden: int,
        n_heads: int,
        bias: bool,
        residual: bool,
        is_of_paper: bool = False,
    ) -> None:
        super().__init__()
        width = n_heads * n_hidden
        self.attn = nn.Parameter(torch.randn(1, n_heads, n_hidden))
        self.fc_src = nn.Linear(in_src, width, bias=bias)
        self.fc_dst = nn.Linear(in_dst, width, bias=bias)
        self.res_fc = None
        if residual:
            is_linear = in_dst != (n_hidden if is_of_paper else width)
            self.res_fc = nn.Linear(in_dst, width, bias) if is_linear else nn.Identity()

    def forward(self, edges: Tensor, h_src: Tensor, h_dst: Tensor) -> Tensor:
        n_heads, n_hidden = self.attn.shape[1:]
        source, target = (
            linear(h).unflatten(-1, (n_heads, n_hidden))
            for linear, h in ((self.fc_src, h_src), (self.fc_dst, h_dst))
        )
        scores = leaky_relu(source[edges[0]] + target[edges[1]], 0.2) * self.attn
        weights = scores.sum(-1, keepdim=True).exp()
        total = torch.zeros(len(target), n_heads, 1).to(weights).index_add(0, edges[1], weights)
        alpha = weights / total[edges[1]]
        out = torch.zeros_like(target).index_add(0, edges[1], alpha * source[edges[0]])
        return out if self.res_fc is None else out + self.res_fc(h_dst).view(len(out), -1, n_hidden)


Case = tuple[OfDGL, bool, Tensor, Tensor, Tensor]


@st.composite
def cases(draw: st.DrawFn, is_of_paper: bool = False) -> Case:
    # 4 is the size of a head, and with one head or two that of the result; 8 is that of the result
    in_src, in_dst = draw(st.sampled_from(((3, 3), (3, 5), (4, 4), (8, 8), (3, 8))))
    n_src, n_dst = draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES))
    n_heads = draw(st.sampled_from((1, 2)))
    bias, residual = draw(st.booleans()), draw(st.booleans())
    torch.manual_seed(draw(st.integers(0, 2**32)))
    theirs = OfDGL(in_src, in_dst, 4, n_heads, bias, residual, is_of_paper).double()
    edges = draw(edge_indices(n_src, n_dst)).long()
    assume(edges.shape != (n_src, n_dst))  # which could be a mask
    h = torch.randn(n_src, in_src).double(), torch.randn(n_dst, in_dst).double()
    return theirs, residual, edges, *h


def assert_same(case: Case, theirs: OfDGL, layer: GraphAttentionV2Layer) -> None:
    """Assert that a layer has the value and the gradients of one of DGL."""
    _, _, edges, h_src, h_dst = case
    cotangent = torch.randn(len(h_dst), layer.out_features).double()
    actual = value_and_gradients(lambda *h: layer(h, edges), (h_src, h_dst), cotangent)
    expected = value_and_gradients(
        lambda *h: theirs(edges, *h).flatten(1), (h_src, h_dst), cotangent
    )
    for a, e in zip(actual, expected, strict=True):
        assert_agrees(a, e)


@given(case=cases())
def test_from_dgl_and_back(case: Case) -> None:
    theirs, residual, *_ = case
    layer = from_dgl(theirs.state_dict(), residual=residual)
    assert_same(case, theirs, layer)
    back = to_dgl(layer)
    assert back.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back[name], tensor)
    theirs.load_state_dict(back)
    # as many parameters to train, so that training goes on as it would have
    n_parameters = sum(p.numel() for p in theirs.parameters())
    assert n_parameters == sum(p.numel() for p in layer.parameters() if p.requires_grad)


@given(case=cases(is_of_paper=True))
def test_from_the_file_of_the_paper(case: Case) -> None:
    """Its residual is the identity where the input has the size of a head.

    What `to_dgl` makes of it is for DGL itself, which has a matrix there. A matrix where the input has
    the size of the result is for the paper's file alone.
    """
    theirs, residual, _, h_src, h_dst = case
    layer = from_dgl(theirs.state_dict(), residual=residual)
    assert_same(case, theirs, layer)
    n_parameters = sum(p.numel() for p in theirs.parameters())
    assert n_parameters == sum(p.numel() for p in layer.parameters() if p.requires_grad)
    n_heads, n_hidden = layer.attn.shape
    if "res_fc.weight" in theirs.state_dict() and h_dst.shape[1] == layer.out_features:
        with pytest.raises(ValueError, match="DGL's residual is the identity"):
            to_dgl(layer)
        return
    bias = layer.linear_l.bias is not None
    newer = OfDGL(h_src.shape[1], h_dst.shape[1], n_hidden, n_heads, bias, residual).double()
    newer.load_state_dict(to_dgl(layer))
    assert_same(case, newer, layer)


def test_the_comparison_rejects_a_missing_residual() -> None:
    theirs = OfDGL(8, 8, 4, 2, bias=True, residual=True).double()
    h = torch.randn(5, 8).double()
    case = theirs, True, torch.tensor([[0, 1, 2], [1, 1, 4]]), h, h
    assert_same(case, theirs, from_dgl(theirs.state_dict(), residual=True))
    with pytest.raises(AssertionError):
        assert_same(case, theirs, from_dgl(theirs.state_dict(), residual=False))


def test_shared_weights_and_prefix() -> None:
    theirs = OfDGL(3, 3, 4, 2, bias=True, residual=False)
    theirs.fc_dst = theirs.fc_src
    state = {f"gat.{name}": tensor for name, tensor in theirs.state_dict().items()}
    layer = from_dgl(state, share_weights=True, prefix="gat.")
    assert layer.linear_l is layer.linear_r
    assert to_dgl(layer).keys() == theirs.state_dict().keys()


@pytest.fixture(scope="module")
def dgl() -> Any:
    """DGL itself, without its data loading, which no wheel has for this version of PyTorch."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("DGLBACKEND", "pytorch")
        patch.setitem(sys.modules, "dgl.graphbolt", types.ModuleType("dgl.graphbolt"))
        try:
            import dgl
            import dgl.nn.pytorch
        except (ImportError, OSError) as error:
            pytest.skip(f"DGL can't be imported: {error}")
    return dgl


SRC = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 6, 6, 7, 8, 9]
DST = [4, 5, 1, 2, 4, 7, 9, 8, 6, 4, 1, 0, 1, 0, 2, 3, 5]
SORTED_DST = [1, 4, 5, 2, 4, 7, 8, 9, 1, 4, 6, 0, 0, 1, 2, 3, 5]
WITH_ZEROS = ([0, 0, 0, 2, 2, 3], [0, 1, 4, 1, 4, 3])
LOOPS = ([0, 1, 2, 0, 1, 2, 3], [1, 2, 3, 0, 1, 2, 3])
FULL = ([0] * 4 + [1] * 4, [0, 1, 2, 3] * 2)
# the graphs of DGL's tests, tests/utils/graph_cases.py
GRAPHS: dict[str, Any] = {
    "homogeneous": lambda dgl: dgl.graph((SRC, DST)),
    "homogeneous, sorted by row": lambda dgl: dgl.graph((SRC, DST), row_sorted=True),
    "homogeneous, sorted": lambda dgl: dgl.graph(
        (SRC, SORTED_DST), row_sorted=True, col_sorted=True
    ),
    "homogeneous, zero degrees": lambda dgl: dgl.graph(WITH_ZEROS),
    "homogeneous, parallel edges": lambda dgl: dgl.graph(([0, 0, 1, 2], [1, 1, 2, 1])),
    "batched": lambda dgl: dgl.batch([dgl.graph(LOOPS), dgl.add_self_loop(dgl.graph(([0], [1])))]),
    "no edges": lambda dgl: dgl.graph(([], []), num_nodes=3),
    "bipartite": lambda dgl: dgl.heterograph({("_U", "_E", "_V"): FULL}),
    "bipartite, zero degrees": lambda dgl: dgl.heterograph({("_U", "_E", "_V"): WITH_ZEROS}),
    "block": lambda dgl: dgl.to_block(dgl.graph(([2, 3, 4], [5, 6, 7]), num_nodes=100)),
    "block, of some": lambda dgl: dgl.to_block(
        dgl.in_subgraph(dgl.graph((SRC, DST)), [1, 4]), torch.tensor([4, 1, 3])
    ),
}
BOTH = (False, True)
OPTIONS = tuple(product((1, 5), (1, 4), BOTH, BOTH, BOTH))


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("name", GRAPHS)
def test_dgl_itself(dgl: Any, name: str, index: torch.dtype) -> None:
    """Every combination of sizes, heads, sharing, bias and residual, as one tensor and as a pair."""
    graph = GRAPHS[name](dgl).astype(index)
    n_src, n_dst = graph.num_src_nodes(), graph.num_dst_nodes()
    n_compared = 0
    for n_hidden, n_heads, share, bias, residual in OPTIONS:
        width = n_hidden * n_heads
        is_one_set = graph.is_block or graph.is_homogeneous
        for in_feats in {5, width, n_hidden} if is_one_set else {5, (5, 3), (3, width)}:
            conv = dgl.nn.pytorch.GATv2Conv(
                in_feats,
                n_hidden,
                n_heads,
                allow_zero_in_degree=True,
                bias=bias,
                residual=residual,
                share_weights=share,
            ).double()
            for parameter_name, parameter in conv.named_parameters():
                if parameter_name.endswith("bias"):
                    nn.init.normal_(parameter)
            in_src, in_dst = in_feats if isinstance(in_feats, tuple) else (in_feats, in_feats)
            h: tuple[Tensor, ...] = (torch.randn(n_src, in_src).double(),)
            if not is_one_set:
                h = (*h, torch.randn(n_dst, in_dst).double())
            try:
                assert_same_as_dgl(conv, graph, h, (residual, share and in_src == in_dst))
            except BaseException as error:
                error.add_note(
                    f"{in_feats=}, {n_hidden=}, {n_heads=}, {share=}, {bias=}, {residual=}"
                )
                raise
            n_compared += 1
    assert n_compared >= 2 * len(OPTIONS)


def assert_same_as_dgl(
    conv: Any, graph: Any, h: tuple[Tensor, ...], options: tuple[bool, bool]
) -> None:
    """Assert that DGL's layer and ours, made of its state dict, agree, and that it loads ours."""
    residual, share_weights = options
    layer = from_dgl(conv.state_dict(), residual=residual, share_weights=share_weights)
    layer.kernel = "torch"  # no compiling for a hundred sizes; every kernel is held to it elsewhere
    edges = torch.stack(graph.edges())
    n_dst = graph.num_dst_nodes()

    def ours(*h: Tensor) -> Any:
        if graph.is_block and len(h) == 1:
            h = (h[0], h[0][:n_dst])
        return layer(h if len(h) == 2 else h[0], edges, return_attention=True)

    def theirs(*h: Tensor) -> Any:
        return conv(graph, h if len(h) == 2 else h[0], get_attention=True)

    assert_agrees(ours(*h)[1], theirs(*h)[1].squeeze(-1))
    cotangent = torch.randn(n_dst, layer.out_features).double()
    actual = value_and_gradients(lambda *h: ours(*h)[0], h, cotangent)
    expected = value_and_gradients(lambda *h: theirs(*h)[0].flatten(1), h, cotangent)
    for a, e in zip(actual, expected, strict=True):
        assert_agrees(a, e)
    conv.load_state_dict(to_dgl(layer))
    assert torch.equal(theirs(*h)[0].flatten(1), expected[0])


def test_another_layer_is_rejected(dgl: Any) -> None:
    graph = GRAPHS[next(iter(GRAPHS))](dgl)
    h = (torch.randn(graph.num_src_nodes(), 5).double(),)
    conv, other = (
        dgl.nn.pytorch.GATv2Conv(5, 3, 2, allow_zero_in_degree=True).double() for _ in range(2)
    )
    conv.state_dict = other.state_dict
    with pytest.raises(AssertionError):
        assert_same_as_dgl(conv, graph, h, (False, False))
