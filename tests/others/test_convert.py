"""Checkpoints of the tutorial and of the paper's code compute what they did, or are refused.

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
from gatv2.testing import assert_agrees, edge_indices, masks, value_and_gradients


def attend(source: Tensor, target: Tensor, attn: Tensor, edges: Tensor) -> Tensor:
    """Attention of targets over sources by edges (source, target): `[n_targets, H, F]`."""
    pair = source[edges[0]] + target[edges[1]]
    scores = (leaky_relu(pair, 0.2) * attn).sum(-1, keepdim=True)
    alpha = softmax(scores, edges[1], num_nodes=len(target))
    return torch.zeros_like(target).index_add(0, edges[1], alpha * source[edges[0]])


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


ONES = torch.ones(3)


def layer(*sizes: Any, **options: Any) -> GraphAttentionV2Layer:
    return GraphAttentionV2Layer(*(sizes or (3, 8, 2)), **options)


def dgl_state(in_features: int = 3, bias: bool = True, residual: bool = False) -> dict[str, Tensor]:
    """A state dict of DGL's layer with two heads of four features."""
    names = ("fc_src", "fc_dst", *(("res_fc",) if residual else ()))
    state = {f"{name}.weight": torch.randn(8, in_features) for name in names}
    state |= {f"{name}.bias": torch.randn(8) for name in names if bias}
    return state | {"attn": torch.randn(1, 2, 4)}


def official_state() -> dict[str, Tensor]:
    return dict(GATv2Conv(3, 4, heads=2).state_dict())


class Wrapped(nn.Module):
    """What adapters make of a projection."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base


class Doubled(GraphAttentionV2Layer):
    """A layer with another result of the same parameters."""

    def join(self, out: Tensor, h_query: Tensor) -> Tensor:
        return 2 * super().join(out, h_query)


def with_join_of_its_own(module: Any) -> Any:
    module.join = Doubled.join.__get__(module)
    return module


def with_wrapped(module: Any, name: str) -> Any:
    setattr(module, name, Wrapped(getattr(module, name)))
    return module


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
    "not a state dict": (
        lambda: from_dgl({0: torch.zeros(1)}),  # type: ignore[dict-item]
        TypeError,
        "`state_dict` must map the names of parameters to tensors",
    ),
    "a class that computes otherwise, to PyG": (
        lambda: to_pyg(Doubled(3, 8, 2)),
        ValueError,
        "Doubled has ['join'] of its own",
    ),
    "a layer that computes otherwise, to DGL": (
        lambda: to_dgl(with_join_of_its_own(layer())),
        ValueError,
        "GraphAttentionV2Layer has ['join'] of its own",
    ),
    "another aggregation": (
        lambda: from_pyg(GATv2Conv(3, 4, aggr="max")),
        ValueError,
        "our layer sums over the keys; `conv` has aggr=MaxAggregation()",
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
    "vector without its first dimension": (
        lambda: from_dgl(dgl_state() | {"attn": torch.zeros(2, 4)}),
        ValueError,
        "`attn` must have shape (1, H, F), no size 0; got (2, 4)",
    ),
    "residual not told": (
        lambda: from_dgl(dgl_state(residual=True)),
        ValueError,
        "pass residual=True",
    ),
    "residual not there": (
        lambda: from_dgl(dgl_state(), residual=True),
        ValueError,
        "the input has 3 features, a head 4 and the result 8",
    ),
    "not shared": (
        lambda: from_dgl(dgl_state(), share_weights=True),
        ValueError,
        "share_weights=True, but the two matrices differ: pass share_weights=False",
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
    "edge features, DGL": (
        lambda: to_dgl(layer(edge_dim=5)),
        ValueError,
        "the layer has edge_dim=5",
    ),
    "their flow and reduced features": (
        lambda: from_pyg(GATv2Conv(3, 4, edge_dim=5, flow="target_to_source")),
        ValueError,
        "reduces edge features over their sources, not over their targets,",
    ),
    "bias of the output, DGL": (
        lambda: to_dgl(with_output_bias()),
        ValueError,
        "the layer's `bias` is not zero",
    ),
    "residual, DGL": (
        lambda: to_dgl(layer(8, 8, 2, residual=True)),
        ValueError,
        "where the input has the size of the result, 8, DGL's residual is the identity",
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
    "one bias of two, DGL": (
        lambda: from_dgl(without(dgl_state(), "fc_dst.bias")),
        ValueError,
        "has ['fc_src.bias'] without ['fc_dst.bias']",
    ),
    "bias of the residual alone, DGL": (
        lambda: from_dgl(without(dgl_state(residual=True), "res_fc.weight"), residual=True),
        ValueError,
        "'res_fc.bias' without 'res_fc.weight'",
    ),
    "residual without its bias, DGL": (
        lambda: from_dgl(without(dgl_state(residual=True), "res_fc.bias"), residual=True),
        ValueError,
        "without ['res_fc.bias']",
    ),
    "one bias of three": (
        lambda: from_official(without(official_state(), "bias"), add_self_loops=True),
        ValueError,
        "has ['lin_l.bias', 'lin_r.bias'] without ['bias']",
    ),
    "a parameter of another layer": (
        lambda: from_dgl(
            {f"gat.{k}": x for k, x in (dgl_state() | {"e": ONES}).items()}, prefix="gat."
        ),
        ValueError,
        "the state dict has ['gat.e'], which are no parameters of this layer",
    ),
    "a layer for its state dict": (
        lambda: from_dgl(layer()),  # type: ignore[arg-type]
        TypeError,
        "got GraphAttentionV2Layer: pass its `state_dict()`",
    ),
    "a list for a tensor": (
        lambda: from_dgl({**dgl_state(), "attn": [[[1.0]]]}),  # type: ignore[dict-item]
        TypeError,
        "`attn` must be a torch.Tensor; got list",
    ),
    "integers": (
        lambda: from_dgl({name: x.long() for name, x in dgl_state().items()}),
        TypeError,
        "one floating-point dtype; got",
    ),
    "two dtypes": (
        lambda: from_dgl(dgl_state() | {"attn": torch.randn(1, 2, 4).half()}),
        TypeError,
        "attn: torch.float16: convert them to one",
    ),
    "a head that does not divide": (
        lambda: from_labml(labml_state(True) | {"attn.weight": torch.randn(1, 3).double()}),
        ValueError,
        "the 3 features of a head, which do not divide the 8 rows",
    ),
    "a wrapped projection, PyG": (
        lambda: from_pyg(with_wrapped(GATv2Conv(3, 4), "lin_l")),
        ValueError,
        "has ['lin_l.base.bias', 'lin_l.base.weight'], which a layer of plain projections has not",
    ),
    "a wrapped projection": (
        lambda: to_pyg(with_wrapped(layer(), "linear_r")),
        ValueError,
        "has ['linear_r.base.weight'], which a layer of plain projections has not",
    ),
    "a wrapped projection, DGL": (
        lambda: to_dgl(with_wrapped(layer(), "linear_r")),
        ValueError,
        "merge what wraps or quantizes them",
    ),
}


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {other: tensor for other, tensor in state.items() if other != name}


@pytest.mark.parametrize(("call", "error", "text"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert text in str(raised.value)


CONVERTERS: dict[str, tuple[Any, Any]] = {
    "DGL": (from_dgl, lambda: dgl_state(residual=True)),
    "tutorial": (from_labml, lambda: labml_state(shared=True)),
    "paper": (from_official, official_state),
}
OPTIONS: dict[str, Any] = {
    "DGL": {"residual": True},
    "tutorial": {},
    "paper": {"add_self_loops": True, "share_weights": False},
}


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_shape_that_does_not_fit_is_told(name: str) -> None:
    """A dimension more or less, a size of zero, or one more or less, of each parameter in turn."""
    convert, make = CONVERTERS[name]
    state = make()
    convert(state, **OPTIONS[name])
    vectors = {"attn", "att", "attn.weight"}
    n_told = 0
    for parameter, tensor in state.items():
        shape = tuple(tensor.shape)
        wrong = [shape[1:], (*shape, 1), (1, *shape)]
        for dim, size in enumerate(shape):
            wrong += [(*shape[:dim], other, *shape[dim + 1 :]) for other in (0, size + 1)]
        for other in wrong:
            is_input = parameter not in vectors and len(shape) == 2 and other[:1] == shape[:1]
            if is_input and len(other) == 2 and other[1]:
                continue  # another number of inputs, which the two sides may have
            with pytest.raises(
                ValueError, match=r"must have shape|do not divide|the result \d"
            ) as told:
                convert(state | {parameter: torch.ones(other).to(tensor)}, **OPTIONS[name])
            assert (
                "weight" in str(told.value) or "att" in str(told.value) or "bias" in str(told.value)
            )
            n_told += 1
    assert n_told >= 6 * len(state) - 6


@pytest.mark.parametrize("name", CONVERTERS)
def test_numpy_arrays(name: str) -> None:
    """As NumPy's and safetensors' files are read; the arrays are copied."""
    convert, make = CONVERTERS[name]
    state = make()
    arrays = {parameter: tensor.numpy().copy() for parameter, tensor in state.items()}
    layer = convert(arrays, **OPTIONS[name])
    expected = {
        parameter: tensor.clone()
        for parameter, tensor in convert(state, **OPTIONS[name]).state_dict().items()
    }
    for array in arrays.values():
        array.fill(0)
    for parameter, tensor in layer.state_dict().items():
        assert torch.equal(tensor, expected[parameter])


def test_matrices_with_nan_do_not_differ_from_themselves() -> None:
    """A run that has diverged is converted as it is."""
    state = labml_state(shared=True)
    state["linear_l.weight"][0, 0] = torch.nan
    state["linear_r.weight"] = state["linear_l.weight"].clone()
    assert from_labml(state).share_weights
    theirs = official_state()
    theirs["lin_l.weight"][0, 0] = torch.nan
    theirs |= {"lin_r.weight": theirs["lin_l.weight"].clone(), "lin_r.bias": theirs["lin_l.bias"]}
    assert from_official(theirs, add_self_loops=False).share_weights
    other = dgl_state()
    other["fc_src.weight"][0, 0] = torch.nan
    other |= {"fc_dst.weight": other["fc_src.weight"].clone(), "fc_dst.bias": other["fc_src.bias"]}
    layer = from_dgl(other, share_weights=True)
    assert layer.share_weights
    assert layer.linear_l.weight.isnan().sum() == 1


@torch.no_grad()
def test_flags_of_theirs_may_be_numbers() -> None:
    """PyTorch Geometric takes 0 and 1 for them."""
    flags: dict[str, Any] = {"concat": 0, "share_weights": 1, "add_self_loops": 0}
    conv, h = GATv2Conv(3, 4, 2, **flags).double(), torch.randn(5, 3).double()
    edges = torch.randint(5, (2, 9))
    assert_agrees(from_pyg(conv)(h, edges), conv(h, edges))


@pytest.mark.parametrize("share_weights", [False, True])
def test_what_is_frozen_stays_frozen(share_weights: bool) -> None:
    conv = GATv2Conv(3, 4, heads=2, share_weights=share_weights)
    conv.lin_l.weight.requires_grad_(False)
    conv.att.requires_grad_(False)
    layer = from_pyg(conv)
    frozen = {name for name, x in layer.named_parameters() if not x.requires_grad}
    assert frozen == {"attn", "linear_l.weight" if share_weights else "linear_r.weight"}
    back = {name: x.requires_grad for name, x in to_pyg(layer).named_parameters()}
    assert back == {name: x.requires_grad for name, x in conv.named_parameters()}
