"""What is special to the fused CPU kernels: threads, memory, sizes, indices, NaN."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gatv2 import Graph
from gatv2.dispatch import KERNELS, Kernel
from gatv2.graph.edge_inputs import EdgeInputs
from gatv2.testing import assert_agrees, value_and_gradients

pytest.importorskip("numba")

from gatv2.dense import numba_kernel as dense_loops
from gatv2.numba import call, gradients, padding, threads, tiles
from gatv2.numba.rows import BLOCK, STRIP

FUSED: dict[str, Kernel] = {kernel.backend: kernel for kernel in KERNELS if kernel.name == "numba"}
REFERENCES: dict[str, Kernel] = {
    kernel.backend: kernel for kernel in KERNELS if kernel.name == "torch"
}
SHAPES = [(8, 8), (1, 1), (1, 7), (3, 5), (9, 8), (4, 32), (2, 65), (1, 121), (40, 1)]
SHAPES_WITH_EDGES = [(8, 8, 16), (1, 1, 3), (3, 5, 1), (2, 65, 17), (40, 1, 5)]


EDGES = pytest.mark.parametrize("edge_dim", [None, 5], ids=["", "edge features"])


@pytest.fixture(params=FUSED.keys())
def backend(request: pytest.FixtureRequest) -> Any:
    """Both backends in turn."""
    return request.param


def random_inputs(
    n_heads: int = 8,
    n_hidden: int = 8,
    n_nodes: tuple[int, int] = (60, 70),
    dtype: torch.dtype = torch.float32,
    batch_shape: tuple[int, ...] = (),
    edge_dim: int | None = None,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Query, key, attn and maybe edge features and their projection; a mask; a cotangent."""
    n_queries, n_keys = n_nodes

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).to(dtype)

    query = normal(*batch_shape, n_queries, n_heads, n_hidden)
    key = normal(*batch_shape, n_keys, n_heads, n_hidden)
    mask = torch.rand(n_queries, n_keys, 1) < 0.3
    features = [query, key, normal(n_heads, n_hidden)]
    if edge_dim is not None:
        edges = normal(*batch_shape, n_queries, n_keys, edge_dim)
        features += [edges, normal(n_heads, n_hidden, edge_dim)]
    return features, mask, torch.randn_like(query)


def outcome(
    kernel: Kernel, features: list[Tensor], mask: Tensor, cotangent: Tensor, dropout: float = 0.3
) -> list[Tensor]:
    """Output, log-sum-exp (0 for a query without keys), coefficients, and gradients of all features."""
    adjacency = Graph.from_mask(mask) if kernel.backend == "sparse" else mask
    leaves = [x.detach().clone().requires_grad_() for x in features]
    query, key, attn, *edges = leaves
    if edges and kernel.backend == "sparse":
        edges[0] = edges[0][..., mask.any(-1), :]
    out, lse, alpha = kernel.attention(
        query,
        key,
        attn,
        adjacency,
        negative_slope=0.2,
        dropout=dropout,
        seed=torch.tensor(5) if dropout else None,
        return_attention=True,
        edges=EdgeInputs(*edges) if edges else None,
    )
    assert alpha is not None
    results = out, lse.masked_fill(lse.isinf(), 0.0), alpha
    cotangents = [cotangent, *(weights_of(x) for x in results[1:])]
    return [*(x.detach() for x in results), *torch.autograd.grad(results, leaves, cotangents)]


def weights_of(values: Tensor) -> Tensor:
    """A cotangent that is the same in every precision."""
    weights = torch.linspace(-1, 2, values.numel(), dtype=torch.float64).view(values.shape)
    return weights.to(values.dtype)


def assert_same_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Assert that results are equal, element for element, and not NaN."""
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


def test_one_other_bit_is_noticed() -> None:
    one = torch.ones(2)
    assert_same_bits([one], [one.clone()])
    for other in (torch.nextafter(one, torch.zeros(2)), torch.ones(3)):
        with pytest.raises(AssertionError):
            assert_same_bits([one], [other])
    with pytest.raises(AssertionError):
        assert_same_bits([one * torch.nan], [one * torch.nan])


def assert_as_good(actual: list[Tensor], reference: list[Tensor], exact: list[Tensor]) -> None:
    """Assert that results are as good as those of the reference in the same precision."""
    for a, r, e in zip(actual, reference, exact, strict=True):
        assert a.dtype == r.dtype
        assert_agrees(a, e.double(), r)


@pytest.mark.parametrize("worse", [torch.full((4,), 1.01), torch.ones(4, dtype=torch.float64)])
def test_worse_results_are_rejected(worse: Tensor) -> None:
    one = torch.ones(4)
    assert_as_good([one], [one], [one.double()])
    with pytest.raises(AssertionError):
        assert_as_good([worse], [one], [one.double()])


@pytest.mark.parametrize(
    ("n_heads", "n_hidden", "edge_dim"), [*((*s, None) for s in SHAPES), *SHAPES_WITH_EDGES]
)
def test_every_shape(backend: str, n_heads: int, n_hidden: int, edge_dim: int | None) -> None:
    features, mask, cotangent = random_inputs(n_heads, n_hidden, edge_dim=edge_dim)
    actual = outcome(FUSED[backend], features, mask, cotangent)
    reference = outcome(REFERENCES[backend], features, mask, cotangent)
    in_float64 = [x.double() for x in features]
    exact = outcome(REFERENCES[backend], in_float64, mask, cotangent.double())
    assert_as_good(actual, reference, exact)


@EDGES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(
    backend: str, dtype: torch.dtype, edge_dim: int | None
) -> None:
    features, mask, cotangent = random_inputs(dtype=dtype, edge_dim=edge_dim)
    actual = outcome(FUSED[backend], features, mask, cotangent, dropout=0.0)
    in_float32 = [x.float() for x in features]
    expected = outcome(FUSED[backend], in_float32, mask, cotangent.float(), dropout=0.0)
    assert actual[1].dtype == torch.float32  # the log-sum-exp
    actual[1] = actual[1].to(dtype)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        rounding = torch.finfo(dtype).eps * max(1.0, float(e.abs().max()))
        assert float((a.float() - e).abs().max()) <= 4 * rounding


@EDGES
def test_long_rows_are_joined_from_blocks(backend: str, edge_dim: int | None) -> None:
    """Queries with thousands of keys, and keys with thousands of queries."""
    for n_nodes in ((3, 5003), (5003, 3)):
        features, mask, cotangent = random_inputs(2, 4, n_nodes, edge_dim=edge_dim)
        mask[0] = True
        actual = outcome(FUSED[backend], features, mask, cotangent)
        reference = outcome(REFERENCES[backend], features, mask, cotangent)
        in_float64 = [x.double() for x in features]
        exact = outcome(REFERENCES[backend], in_float64, mask, cotangent.double())
        assert_as_good(actual, reference, exact)


@pytest.mark.parametrize(
    ("n_heads", "n_hidden", "dtype", "edge_dim"),
    [  # each shape in both precisions, with and without edge features; all pairs of these two
        (8, 8, torch.float32, None),
        (8, 8, torch.float64, 5),
        (1, 3, torch.float32, 5),
        (1, 3, torch.float64, None),
        (20, 4, torch.float32, None),
        (20, 4, torch.float64, 5),
        (2, 130, torch.float32, 5),
        (2, 130, torch.float64, None),
    ],
    ids=str,
)
def test_short_rows_are_worked_off_together(
    n_heads: int, n_hidden: int, dtype: torch.dtype, edge_dim: int | None
) -> None:
    """Rows with and without keys, and as long as a strip and as a block, in every order."""
    counts = [0, 1, 2, 0, 0, 29, 1, STRIP, STRIP + 1, 3, BLOCK, 0, 30, BLOCK + 1, 2, 2, 0]
    n_nodes = len(counts), max(counts)
    features, _, cotangent = random_inputs(n_heads, n_hidden, n_nodes, dtype, edge_dim=edge_dim)
    mask = torch.zeros(*n_nodes, 1, dtype=torch.bool)
    for row, n in enumerate(counts):
        mask[row, torch.randperm(n_nodes[1])[:n]] = True
    actual = outcome(FUSED["sparse"], features, mask, cotangent)
    reference = outcome(REFERENCES["sparse"], features, mask, cotangent)
    in_float64 = [x.double() for x in features]
    exact = outcome(REFERENCES["sparse"], in_float64, mask, cotangent.double())
    assert_as_good(actual, reference, exact)


@EDGES
def test_dense_gradients_are_joined_from_blocks(
    edge_dim: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, mask, cotangent = random_inputs(batch_shape=(2,), edge_dim=edge_dim)
    expected = outcome(
        REFERENCES["dense"], [x.double() for x in features], mask, cotangent.double()
    )
    reference = outcome(REFERENCES["dense"], features, mask, cotangent)
    monkeypatch.setattr(dense_loops, "_BLOCK", 8 * 100)  # a few rows a block
    assert_as_good(outcome(FUSED["dense"], features, mask, cotangent), reference, expected)


def test_same_bits_with_other_registers(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has edge features is summed in other pieces where a CPU has fewer registers, or more."""
    features, mask, cotangent = random_inputs(4, 16, edge_dim=18)
    expected = outcome(FUSED[backend], features, mask, cotangent)
    pieces = tiles.tiles_of(4, 16, False).vectors
    n_bytes = tiles.sum_bytes()
    monkeypatch.setattr(tiles, "sum_bytes", lambda: 256 if n_bytes == 1024 else 1024)
    tiles.tiles_of.cache_clear()
    try:
        assert_same_bits(outcome(FUSED[backend], features, mask, cotangent), expected)
        assert tiles.tiles_of(4, 16, False).vectors._numba_type_ != pieces._numba_type_
    finally:
        tiles.tiles_of.cache_clear()


@EDGES
@pytest.mark.parametrize("batch_shape", [(), (3,)])
def test_same_bits_on_any_number_of_threads(
    backend: str,
    batch_shape: tuple[int, ...],
    edge_dim: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_CHUNK_WORK", 1 << 10)  # many chunks
    features, mask, cotangent = random_inputs(
        n_nodes=(300, 200), batch_shape=batch_shape, edge_dim=edge_dim
    )
    n_threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 7, 7):
            torch.set_num_threads(n)
            results.append(outcome(FUSED[backend], features, mask, cotangent))
    finally:
        torch.set_num_threads(n_threads)
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_two_threads_call_at_once(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_CHUNK_WORK", 1 << 10)
    cases = [random_inputs(n_nodes=(150, 150 + 10 * i)) for i in range(4)]
    expected = [outcome(FUSED[backend], *case) for case in cases]
    actual: dict[int, list[list[Tensor]]] = {}

    def work(i: int) -> None:
        actual[i] = [outcome(FUSED[backend], *cases[i]) for _ in range(5)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i, results in actual.items():
        for result in results:
            assert_same_bits(result, expected[i])
    assert len(actual) == len(cases)


FORK = """
import os, sys, warnings
import numpy as np
import torch
from gatv2 import Graph
from gatv2.functional import gatv2_attention
from gatv2.numba import threads

warnings.simplefilter("ignore", DeprecationWarning)  # the fork is the point
threads._CHUNK_WORK = 1 << 10
torch.set_num_threads(2)
torch.manual_seed(0)
query, key, attn = torch.randn(400, 2, 8), torch.randn(400, 2, 8), torch.randn(2, 8)
mask = torch.rand(400, 400, 1) < 0.1
adjacency = Graph.from_mask(mask) if sys.argv[1] == "sparse" else mask

def attend():
    return gatv2_attention(query, key, attn, adjacency, kernel="numba").numpy()

expected = attend()
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(attend(), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_calls_after_its_parent(backend: str) -> None:
    """In a process of its own: this one may have loaded JAX, which cannot be forked."""
    subprocess.run([sys.executable, "-c", FORK, backend], check=True, timeout=120)


@pytest.mark.parametrize("head_mask", [False, True])
def test_int64_indices(head_mask: bool) -> None:
    features, mask, cotangent = random_inputs(n_heads=2)
    if head_mask:
        mask = mask & (torch.rand(*mask.shape[:2], 2) < 0.5)
    graph = Graph.from_mask(mask)
    names = ("query_ptr", "key_index", "query_index", "edge_id")
    wide = replace(graph, **{name: getattr(graph, name).long() for name in names})
    results = []
    for g in (graph, wide):

        def function(query: Tensor, key: Tensor, attn: Tensor, graph: Graph = g) -> Tensor:
            return FUSED["sparse"].attention(
                query,
                key,
                attn,
                graph,
                negative_slope=0.2,
                dropout=0.3,
                seed=torch.tensor(-7),
                return_attention=False,
            )[0]

        results.append(value_and_gradients(function, features, cotangent))
    assert_same_bits(*results)


def test_nan_stays_where_it_is_attended_to(backend: str) -> None:
    """NaN reaches the queries that attend to it with that head, and no other."""
    (query, key, attn), mask, cotangent = random_inputs(n_heads=2, n_nodes=(9, 9))
    mask = mask & (torch.rand(9, 9, 2) < 0.7)
    mask[2], mask[:, 3] = False, False
    key[4, 1], key[3], query[2], query[5, 0] = (torch.nan for _ in range(4))
    out, _, _, _, to_key, _ = outcome(FUSED[backend], [query, key, attn], mask, cotangent, 0.0)
    expected = mask[:, 4] & torch.tensor([False, True])
    expected[5, 0] = mask[5, :, 0].any()
    assert torch.equal(out.isnan().any(-1), expected)
    assert not to_key[3].isnan().any()
    assert out[2].abs().sum() == 0


@EDGES
def test_memory_is_written_before_it_is_read(
    backend: str, edge_dim: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New memory holds NaN here, and results do not change."""
    features, mask, cotangent = random_inputs(n_heads=3, edge_dim=edge_dim)
    mask[:, :7], mask[3:6] = False, False
    expected = outcome(FUSED[backend], features, mask, cotangent)

    def poisoned(shape: tuple[int, ...], dtype: Any, _given: object = None) -> Any:
        return np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else 0x5A, dtype)

    for module in (call, padding, gradients, dense_loops):
        monkeypatch.setattr(module, "empty", poisoned)
    assert_same_bits(outcome(FUSED[backend], features, mask, cotangent), expected)
    assert np.isnan(vars(call)["empty"]((2,), np.float32)).all()


_WITH_BOUNDS = """
import sys
import torch
sys.path.insert(0, {tests!r})
from test_numba_kernels import FUSED, outcome, random_inputs
for backend in FUSED:
    for shape, edge_dim, mask_heads in (((2, 8), None, 2), ((1, 65), 17, 1)):
        options = {{"n_nodes": (33, 70), "batch_shape": (2,), "edge_dim": edge_dim}}
        features, mask, cotangent = random_inputs(*shape, **options)
        mask[:5] = False
        outcome(FUSED[backend], features, mask.expand(-1, -1, mask_heads), cotangent)
"""

_OUT_OF_BOUNDS = """
import numpy as np
from gatv2.numba.compile import kernel
from gatv2.numba.simd import load, store
from gatv2.numba.vectors import Vectors
@kernel
def copy(vectors, x, at):
    store(x, 0, load(vectors.four, x, at))
copy(Vectors(four=(np.float32, 4)), np.zeros(8, np.float32), 4)
copy(Vectors(four=(np.float32, 4)), np.zeros(8, np.float32), 5)
"""


def run_with_bounds(code: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which Numba checks every index."""
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_every_index_is_in_bounds(tmp_path: Path) -> None:
    code = _WITH_BOUNDS.format(tests=str(Path(__file__).parent))
    result = run_with_bounds(code, tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_check_sees_an_index_out_of_bounds(tmp_path: Path) -> None:
    result = run_with_bounds(_OUT_OF_BOUNDS, tmp_path)
    assert "index is out of bounds" in result.stderr


AFTER_MAIN = """
import atexit, threading, time
import torch
from gatv2 import Graph
from gatv2.functional import gatv2_attention
from gatv2.numba import threads

threads._CHUNK_WORK = 1 << 10
torch.set_num_threads(2)
torch.manual_seed(0)
query, key, attn = torch.randn(400, 2, 8), torch.randn(400, 2, 8), torch.randn(2, 8)
graph = Graph.from_mask(torch.rand(400, 400, 1) < 0.1)

def attend():
    return gatv2_attention(query, key, attn, graph, kernel="numba")

expected = attend()
main = threading.current_thread()

def work():
    main.join()
    time.sleep(0.2)
    print("thread", torch.equal(attend(), expected), flush=True)

atexit.register(lambda: print("exit", torch.equal(attend(), expected), flush=True))
threading.Thread(target=work).start()
"""


def test_a_thread_that_outlives_the_main_one_works_alone() -> None:
    result = subprocess.run(
        [sys.executable, "-c", AFTER_MAIN], capture_output=True, text=True, timeout=300, check=True
    )
    assert sorted(result.stdout.split()) == ["True", "True", "exit", "thread"], result.stderr
