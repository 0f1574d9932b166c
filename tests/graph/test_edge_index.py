"""An edge index is read as it is: any integers, any layout, from a file, and without a copy."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.graph.check import check_graph
from gatv2.graph.edge_index import queries_and_keys, read_edge_index
from gatv2.options import Flow
from gatv2.testing import SIZES, edge_indices

Array = NDArray[Any]
Function = Callable[[Tensor, Tensor], Tensor]
DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i8", ">u4")
FIELDS = ("query_ptr", "key_index", "query_index", "edge_id")


def column_major(array: Array) -> Array:
    return np.asfortranarray(array)


def backwards(array: Array) -> Array:
    return array[::-1, ::-1].copy()[::-1, ::-1]


def every_other(array: Array) -> Array:
    return np.repeat(array, 2, axis=1)[:, ::2]


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


def column_major_read_only(array: Array) -> Array:
    return read_only(column_major(array))


def a_field(array: Array) -> Array:
    records = np.zeros(array.shape, dtype=np.dtype([("id", array.dtype), ("byte", "i1")]))
    records["id"] = array
    return records["id"]  # unaligned


LAYOUTS = (
    np.copy,
    column_major,
    backwards,
    every_other,
    read_only,
    column_major_read_only,
    a_field,
)


def assert_equal(one: Graph, other: Graph) -> None:
    assert one.n_keys == other.n_keys
    for name in FIELDS:
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name


def test_the_check_rejects_another_graph() -> None:
    edge_index = torch.tensor([[0, 1], [1, 1]])
    with pytest.raises(AssertionError):
        assert_equal(
            Graph.from_edge_index(edge_index, 2), Graph.from_edge_index(edge_index, (2, 3))
        )
    with pytest.raises(AssertionError, match="edge_id"):
        assert_equal(
            Graph.from_edge_index(edge_index, 2), Graph.from_edge_index(edge_index.flip(1), 2)
        )


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data(), flow=st.sampled_from(["target_to_source", "source_to_target"]))
def test_arrays_are_read_as_tensors(dtype: str, data: Any, flow: Flow) -> None:
    sizes = [data.draw(st.sampled_from((0, *SIZES))) for _ in range(2)]
    edge_index = data.draw(edge_indices(*sizes))
    n_nodes = (sizes[0], sizes[1]) if flow == "target_to_source" else (sizes[1], sizes[0])
    array = data.draw(st.sampled_from(LAYOUTS))(edge_index.numpy().astype(dtype))
    graph = Graph.from_edge_index(array, n_nodes, flow=flow)
    assert_equal(graph, Graph.from_edge_index(edge_index, n_nodes, flow=flow))
    check_graph(graph)


@pytest.mark.parametrize("dtype", [x for x in DTYPES if ">" not in x])
def test_so_are_tensors_of_any_integers(dtype: str) -> None:
    edge_index = torch.randint(9, (2, 40))
    narrow = torch.from_numpy(edge_index.numpy().astype(dtype))
    assert_equal(Graph.from_edge_index(narrow, 9), Graph.from_edge_index(edge_index, 9))
    # numbers of nodes need not fit into the indices
    assert_equal(Graph.from_edge_index(narrow, 70_000), Graph.from_edge_index(edge_index, 70_000))


@pytest.mark.parametrize("dtype", DTYPES)
def test_so_they_are_without_numba(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edge_index = torch.randint(9, (2, 40))
    expected = Graph.from_edge_index(edge_index, 9)
    monkeypatch.setattr("gatv2.graph.sort._counting_sort", lambda: None)
    assert_equal(Graph.from_edge_index(edge_index.numpy().astype(dtype), 9), expected)


@pytest.mark.parametrize("layout", [np.copy, column_major])
def test_files_are_read_as_arrays(layout: Any, tmp_path: Path) -> None:
    edge_index = torch.randint(9, (2, 40))
    np.save(tmp_path / "edges.npy", layout(edge_index.numpy()))
    for mode in ("r", "r+", "c"):
        array = np.load(tmp_path / "edges.npy", mmap_mode=mode)
        graph = Graph.from_edge_index(array, n_nodes=9)
        assert_equal(graph, Graph.from_edge_index(edge_index, n_nodes=9))


@pytest.mark.parametrize("layout", [np.copy, column_major, every_other, column_major_read_only])
@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_nothing_is_copied(layout: Any, dtype: str) -> None:
    array = layout(np.arange(8, dtype=dtype).reshape(2, 4))
    edge_index, *_ = read_edge_index(array, 8, "target_to_source")
    query, key = queries_and_keys(edge_index, "target_to_source")
    assert (query.data_ptr(), key.data_ptr()) == (array[0].ctypes.data, array[1].ctypes.data)
    query, key = queries_and_keys(edge_index, "source_to_target")
    assert (query.data_ptr(), key.data_ptr()) == (array[1].ctypes.data, array[0].ctypes.data)


def test_the_graph_is_its_own() -> None:
    array = np.array([[0, 1], [1, 1]])
    graph, again = (Graph.from_edge_index(array, 2) for _ in range(2))
    array[:] = 0
    assert_equal(graph, again)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")
@pytest.mark.parametrize("flow", ["target_to_source", "source_to_target"])
def test_beside_the_graph_it_takes_the_memory_of_one_index(flow: Flow) -> None:
    pytest.importorskip("numba")

    def memory(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

    n_nodes, n_edges = 1000, 1 << 22
    array = read_only(np.random.default_rng(0).integers(n_nodes, size=(2, n_edges)))
    Graph.from_edge_index(array[:, :9], n_nodes, flow=flow)  # compiled
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    graph = Graph.from_edge_index(array, n_nodes, flow=flow)
    index = graph.key_index.nbytes
    assert memory("VmHWM") - before < 4.3 * index


@pytest.mark.parametrize("n", [5, np.int64(5), np.uint8(5), torch.tensor(5), np.array(5)], ids=type)
def test_sizes_are_any_integers(n: Any) -> None:
    edge_index = torch.tensor([[0, 4], [3, 4]])
    assert_equal(Graph.from_edge_index(edge_index, n), Graph.from_edge_index(edge_index, 5))
    pair = Graph.from_edge_index(edge_index, (n, 7))
    assert_equal(pair, Graph.from_edge_index(edge_index, (5, 7)))
    assert type(pair.n_keys) is int


@pytest.mark.parametrize(
    "n", [5.0, "5", None, (5,), (5, 5, 5), (5, 5.0), np.array([5, 5])], ids=str
)
def test_other_sizes_are_errors(n: Any) -> None:
    with pytest.raises(TypeError, match=r"must be an integer, or a pair of them, .*; got "):
        Graph.from_edge_index(torch.tensor([[0], [0]]), n)


WRONG = {
    "floats": (np.zeros((2, 3)), TypeError, "must hold integers; got float64: convert it with"),
    "bool": (np.zeros((2, 3), bool), TypeError, "must hold integers; got bool"),
    "objects": (np.zeros((2, 3), object), TypeError, "must hold integers; got object"),
    "a list": ([[0], [1]], TypeError, r"or a numpy.ndarray; got list: .* `torch.as_tensor\("),
    "three rows": (
        np.zeros((3, 3), int),
        ValueError,
        r"must have shape \(2, n_edges\); got \(3, 3\)",
    ),
    "one row": (np.zeros(4, int), ValueError, r"must have shape \(2, n_edges\); got \(4,\)"),
    "too large": (
        np.full((2, 3), 5),
        IndexError,
        "edge 0 has query 5, but there are 5 query nodes",
    ),
    "negative": (np.full((2, 3), -1, np.int8), IndexError, "edge 0 has query -1, but"),
    "huge": (np.full((2, 3), 2**64 - 1, np.uint64), IndexError, f"has query {2**64 - 1}, but"),
    "large": (np.full((2, 3), 2**32 - 1, np.uint32), IndexError, f"has query {2**32 - 1}, but"),
}


@pytest.mark.parametrize(("edge_index", "error", "text"), WRONG.values(), ids=WRONG)
def test_errors(edge_index: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Graph.from_edge_index(edge_index, 5)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_the_first_edge_out_of_range_is_named(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatv2.graph.edge_index._CHUNK", chunk)
    array = np.zeros((2, 9), int)
    Graph.from_edge_index(array, 5)
    array[1, 4:] = 6
    with pytest.raises(IndexError, match="edge 4 has key 6, but there are 5 key nodes"):
        Graph.from_edge_index(array, 5)


def _compiled(layer: GraphAttentionV2Layer) -> Function:
    torch._dynamo.reset()
    return torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")


def _exported(layer: GraphAttentionV2Layer) -> Function:
    shapes = {"h": {0: Dim.DYNAMIC}, "adj_mat": {1: Dim.DYNAMIC}}
    example = torch.randn(6, 4), torch.randint(6, (2, 9))
    return torch.export.export(layer, example, dynamic_shapes=shapes).module()


def _mapped(layer: GraphAttentionV2Layer) -> Function:
    return lambda h, edge_index: vmap(layer, (None, 0))(h, edge_index.expand(2, -1, -1))


def _recorded(layer: GraphAttentionV2Layer) -> Function:
    example = torch.randn(6, 4), torch.randint(6, (2, 2))
    layer(*example)  # its edges are known then
    recorded: Function = make_fx(layer)(*example)
    return recorded


@pytest.mark.parametrize("transform", [_compiled, _exported, _mapped, _recorded])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_nothing_outside_is_read_where_python_may_not_look(
    transform: Callable[[GraphAttentionV2Layer], Function],
    requires_grad: bool,
) -> None:
    layer = GraphAttentionV2Layer(4, 8, 2, dropout=0.0).requires_grad_(requires_grad)
    function, h = transform(layer), torch.randn(6, 4)
    function(h, torch.tensor([[0, 5], [5, 0]]))
    for index in (-(2**31), -2, -1, 6, 7, 2**31 - 1):
        for edge_index in ([[0, index], [1, 1]], [[0, 1], [1, index]]):
            with pytest.raises(IndexError, match=r"out of range|indices .*must lie in"):
                function(h, torch.tensor(edge_index))


@pytest.mark.skipif(not shutil.which("c++"), reason="compiled code needs a compiler of C++")
def test_compiled_code_refuses_what_it_would_count_from_the_end() -> None:
    """It does so for the formula in operations of PyTorch, which it compiles itself."""
    torch._dynamo.reset()
    # without a backward pass, which would be compiled, too
    layer = GraphAttentionV2Layer(4, 8, 2, dropout=0.0, kernel="torch").requires_grad_(False)
    function = torch.compile(layer, fullgraph=True, dynamic=True)
    h, edges = torch.randn(6, 4), torch.tensor([[0, 5], [5, 0]])
    torch.testing.assert_close(function(h, edges), layer(h, edges))
    for index in (-2, -1, 6):
        for edge_index in ([[0, index], [1, 1]], [[0, 1], [1, index]]):
            with pytest.raises((IndexError, RuntimeError), match=r"out of (bounds|range)"):
                function(h, torch.tensor(edge_index))


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_operations_are_recorded_for_any_edges(kernel: Any) -> None:
    layer = GraphAttentionV2Layer(4, 8, 2, dropout=0.0, kernel=kernel)
    function, h = _recorded(layer), torch.randn(6, 4)
    for _ in range(3):
        edge_index = torch.randint(6, (2, 2))
        torch.testing.assert_close(function(h, edge_index), layer(h, edge_index))


def test_fake_edges_give_fake_results() -> None:
    layer = GraphAttentionV2Layer(4, 8, 2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        out = layer(torch.randn(6, 4), torch.zeros(2, 5, dtype=torch.int64))
    assert isinstance(out, FakeTensor)
    assert out.shape == (6, 8)
