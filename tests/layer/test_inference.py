"""Layer-wise inference gives what the model gives, and holds one layer's activations at most."""

import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gatv2 import GATv2, Graph, GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.inference import apply_in_blocks
from gatv2.testing import assert_agrees, edge_indices, masks


@given(data=st.data(), edge_index=edge_indices(7, 7))
def test_is_the_forward_pass(data: st.DataObject, edge_index: Tensor) -> None:
    torch.manual_seed(0)
    draw: Callable[[Any], Any] = lambda values: data.draw(st.sampled_from(values))  # noqa: E731
    model = GATv2(
        *(3, 8, 5, 3, 2),
        layer=draw((GraphAttentionV2Layer, GraphAttentionLayer)),
        share_weights=draw((False, True)),
        bias=draw((False, True, "projections")),
        residual=draw((False, True)),
        add_self_loops=draw((False, True)),
        flow=draw(("target_to_source", "source_to_target")),
        dtype=torch.float64,
    ).eval()
    for parameter in model.parameters():  # biases begin as zeros
        torch.nn.init.normal_(parameter)
    h = torch.randn(*draw(((), (2,))), 7, 3).double()
    out = model.inference(h, edge_index, block_size=draw((1, 2, 3, 7, 100)))
    assert_agrees(out, model(h, edge_index))
    assert not out.requires_grad


@given(data=st.data(), edge_index=edge_indices(7, 7))
def test_features_of_edges(data: st.DataObject, edge_index: Tensor) -> None:
    torch.manual_seed(0)
    loops = data.draw(st.booleans())
    model = GATv2(3, 8, 5, n_heads=2, edge_dim=4, add_self_loops=loops, dtype=torch.float64).eval()
    h, features = torch.randn(7, 3).double(), torch.randn(edge_index.shape[1], 4).double()
    out = model.inference(h, edge_index, edge_features=features, block_size=3)
    assert_agrees(out, model(h, edge_index, edge_features=features))


@pytest.mark.parametrize("sides", [(7, 3), (3, 7)])
def test_self_loops_of_a_sampled_block(sides: tuple[int, int]) -> None:
    """Sources and targets, of which some are the same nodes: the layer adds their loops."""
    layer = GraphAttentionV2Layer(
        *((3, 4), 8, 2),
        edge_dim=2,
        add_self_loops=True,
        loop_bias="mean",
        flow="source_to_target",
        dtype=torch.float64,
    ).eval()
    h = torch.randn(sides[0], 3).double(), torch.randn(sides[1], 4).double()
    edge_index = torch.stack([torch.randint(n, (20,)) for n in sides])
    for_edges: dict[str, Any] = {
        "edge_features": torch.randn(20, 2).double(),
        "score_bias": torch.randn(20, 2).double(),
    }
    out = apply_in_blocks(layer, h, edge_index, **for_edges, block_size=2)
    assert_agrees(out, layer(h, edge_index, **for_edges))


@given(mask=masks(5, 7, 2), block_size=st.sampled_from((1, 2, 5)))
def test_two_sides_and_a_mask_of_heads(mask: Tensor, block_size: int) -> None:
    torch.manual_seed(0)
    layer = GraphAttentionV2Layer((3, 4), 8, n_heads=2, residual=True, dtype=torch.float64).eval()
    h = torch.randn(5, 3).double(), torch.randn(7, 4).double()
    expected = layer(h, mask)
    for graph in (mask, Graph.from_mask(mask)):
        out = apply_in_blocks(layer, h, graph, activation=torch.tanh, block_size=block_size)
        assert_agrees(out, expected.tanh())


def test_single_precision_and_features_in_a_file(tmp_path: Path) -> None:
    """The bound that is promised: 1e-6, on a graph of many blocks."""
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (3000, 17))
    x[:] = np.random.default_rng(0).standard_normal(x.shape)
    h, edge_index = torch.from_numpy(x), torch.randint(3000, (2, 30_000))
    model = GATv2(17, 64, 7, n_layers=3, bias=True).eval()
    expected = model(h, edge_index)
    for block_size in (100, 1024, 10_000):
        out = model.inference(h, edge_index, block_size=block_size)
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations made under this mode and that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        given = {x.untyped_storage()._cdata for x in args if isinstance(x, Tensor)}
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given | self._seen:
                self._follow(x.untyped_storage())
        return result

    def _follow(self, storage: Any) -> None:
        address, size = storage._cdata, storage.nbytes()
        self._seen.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._seen.discard(address)
            self.now -= size

        weakref.finalize(storage, gone)


def peak_of(function: Callable[[], object]) -> int:
    live = LiveBytes()
    with live:
        function()
    return live.peak


def test_live_bytes_are_counted() -> None:
    x = torch.zeros(1000)
    assert peak_of(lambda: x.add_(1).view(10, 100)) == 0
    assert peak_of(lambda: (x + 1).sum()) == 4004
    assert peak_of(lambda: [x + 1, x + 2]) == 8000

    def one_after_another() -> None:
        for _ in range(5):
            x + 1

    assert peak_of(one_after_another) == 4000


@pytest.mark.parametrize("n_layers", [2, 3, 6])
@pytest.mark.parametrize("residual", [False, True])
def test_one_layers_activations_at_most(n_layers: int, residual: bool) -> None:
    """A layer's input, keys and output, and what belongs to a block, of any number of layers."""
    n_nodes, width, block_size = 20_000, 32, 500
    x, edge_index = torch.randn(n_nodes, width), torch.randint(n_nodes, (2, 4 * n_nodes))
    graph = Graph.from_edge_index(edge_index, n_nodes)
    model = GATv2(width, width, width, n_layers, 4, bias=True, residual=residual).eval()
    whole, block = 4 * n_nodes * width, 4 * block_size * width
    # queries, attention, its mean or residual, biased, activated; and the block's edges
    allowed = 3 * whole + 6 * block
    assert peak_of(lambda: model.inference(x, graph, block_size=block_size)) <= allowed
    assert peak_of(lambda: model.inference(x, graph, block_size=n_nodes)) > allowed
    with torch.no_grad():
        assert peak_of(lambda: model(x, graph)) > allowed
    assert peak_of(lambda: model(x, graph)) > n_layers * 3 * whole  # what training keeps


MEASURE = """
import sys, torch
from pathlib import Path
from gatv2 import GATv2, Graph

def peak():  # not ru_maxrss, which knows the process that started this one too
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

torch.set_num_threads(1)
n_nodes, width = 250_000, 64
model = GATv2(width, width, width, n_layers=4, n_heads=8).eval()
warm = torch.randn(100, width), torch.randint(100, (2, 300))
model.inference(*warm), model(*warm)
x = torch.randn(n_nodes, width)
graph = Graph.from_edge_index(torch.randint(n_nodes, (2, 2 * n_nodes)), n_nodes)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = peak()
out = model.inference(x, graph, block_size=10_000) if sys.argv[1] == "inference" else model(x, graph)
print((peak() - before) / x.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")
def test_the_process_holds_no_more() -> None:
    """What the operating system says of four layers, in units of one layer's `[n_nodes, width]`."""
    peaks = {
        kind: float(
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", MEASURE, kind],
                capture_output=True,
                text=True,
                check=True,
                timeout=300,
                cwd=Path(__file__).parents[2],
            ).stdout
        )
        for kind in ("inference", "forward")
    }
    assert peaks["inference"] < 3.6  # input, keys, output; a block is 4 % of them
    assert peaks["forward"] > 10


def test_errors() -> None:
    model = GATv2(3, 8, 7, n_heads=2)
    h, edge_index = torch.randn(4, 3), torch.tensor([[0, 0, 1, 3], [1, 2, 2, 3]])
    with pytest.raises(RuntimeError, match=r"call `\.eval\(\)` on the model first"):
        model.inference(h, edge_index)
    model.eval()
    with pytest.raises(ValueError, match="`block_size` must be positive; got 0"):
        model.inference(h, edge_index, block_size=0)
    with pytest.raises(ValueError, match="the graph is a batch of 2 masks"):
        model.inference(h.expand(2, 4, 3), torch.ones(2, 4, 4, 1))
    with pytest.raises(ValueError, match="has 5 queries"):
        model.inference(h, Graph.from_edge_index(edge_index, 5))
    with pytest.raises(TypeError, match="must have the layer's dtype"):
        model.inference(h.double(), edge_index)
    with_edges = GATv2(3, 8, 7, n_heads=2, edge_dim=2).eval()
    with pytest.raises(
        ValueError, match=r"n_edges=4, D=2\), in the order of the edges.*; got \(3, 2\)"
    ):
        with_edges.inference(h, edge_index, edge_features=torch.randn(3, 2))
    with pytest.raises(TypeError, match=r"`edge_features` must be a torch\.Tensor"):
        with_edges.inference(h, edge_index)


@pytest.mark.parametrize(
    "activation",
    [lambda out: out.sum(-1), lambda out: out.mean(-2, keepdim=True), lambda out: out[None]],
    ids=["a number a row", "one row", "a batch"],
)
def test_an_activation_leaves_rows(activation: Callable[[Tensor], Tensor]) -> None:
    layer, edge_index = GraphAttentionV2Layer(3, 4, 2).eval(), torch.tensor([[0, 1], [1, 0]])
    with pytest.raises(ValueError, match="`activation` must make a row of each row; it made"):
        apply_in_blocks(layer, torch.randn(4, 3), edge_index, activation=activation, block_size=2)
