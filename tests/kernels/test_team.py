"""Kernels on PyTorch's own team of threads: same bits as without, and nobody waits in vain."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gatv2 import Graph, gatv2_attention

pytest.importorskip("numba")

from gatv2.numba import scores, team, threads
from gatv2.numba.compile import kernel
from gatv2.numba.memory import LINE_BYTES, empty_rows, zeros
from gatv2.numba.scores import own_buffers
from gatv2.numba.team import share_out
from gatv2.numba.threads import next_chunk, run_chunks
from gatv2.numba.tiles import tiles_of

needs_team = pytest.mark.skipif(
    sys.platform != "linux" or not team._runtime().parallel, reason="PyTorch brings no such team"
)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
N_NODES, N_EDGES = 300, 2000


@pytest.fixture(autouse=True)
def threads_are_set_back() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One element for each call of a team, which is not left alone; chunks are small."""
    made: list[int] = []
    monkeypatch.setattr(threads, "_CHUNK_WORK", 1 << 10)
    monkeypatch.setattr(threads, "look_at", lambda state: made.append(int(state[team._ARRIVALS])))
    monkeypatch.setattr(team._Teams, "paid_until", 0.0)
    return made


def case(form: str) -> tuple[list[Tensor], dict[str, Any], object]:
    """Inputs, options, of which some are inputs too, and a graph."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    inputs = [normal(N_NODES, 3, 8), normal(N_NODES, 3, 8), normal(3, 8)]
    edge_index = torch.randint(N_NODES, (2, N_EDGES), generator=generator)
    mask = torch.rand(N_NODES, N_NODES, 3, generator=generator) < 0.05
    options: dict[str, Any] = {}
    if form == "edge features":
        options = {"edge_features": normal(N_EDGES, 5), "edge_projection": normal(3, 8, 5)}
    elif form == "bias":
        options = {"score_bias": normal(N_EDGES, 1)}
    elif form == "dropout":
        options = {"dropout": 0.4, "seed": 3}
    elif form == "coefficients":
        options = {"return_attention": True}
    if form.startswith("dense"):
        return inputs, options, mask if form == "dense, by head" else mask[..., :1]
    return inputs, options, Graph.from_edge_index(edge_index, N_NODES)


def outcome(inputs: list[Tensor], options: dict[str, Any], graph: object) -> list[Tensor]:
    """Results and the gradients of all that is differentiable."""
    query, key, attn = inputs
    results = gatv2_attention(query, key, attn, graph, kernel="numba", **options)
    if isinstance(results, Tensor):
        results = (results,)
    leaves = [*inputs, *(x for x in options.values() if isinstance(x, Tensor))]
    cotangents = [torch.linspace(-1, 2, x.numel()).view(x.shape) for x in results]
    return [*results, *torch.autograd.grad(results, leaves, cotangents)]


FORMS = [
    "sparse",
    "edge features",
    "bias",
    "dropout",
    "coefficients",
    "dense",
    "dense, by head",
]


@needs_team
@pytest.mark.parametrize("form", FORMS)
def test_same_bits_with_and_without_a_team(
    form: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = case(form)
    torch.set_num_threads(1)
    expected = outcome(*arguments)
    assert not calls
    for n in (2, 3):
        torch.set_num_threads(n)
        assert all(map(torch.equal, outcome(*arguments), expected))
    n_calls = len(calls)
    assert n_calls >= 6  # forward, and backward by queries and by keys
    assert set(calls) == {3, 4}  # the calling function, and it again as each member
    monkeypatch.setattr(team, "runtime", lambda: team.Runtime(0, 0))
    for n in (2, 3):
        torch.set_num_threads(n)
        assert all(map(torch.equal, outcome(*arguments), expected))
    assert len(calls) == n_calls


@needs_team
def test_several_threads_have_their_teams(calls: list[int]) -> None:
    arguments = case("sparse")
    expected = outcome(*arguments)
    torch.set_num_threads(2)
    actual: list[list[Tensor]] = []

    def work() -> None:
        actual.extend(outcome(*arguments) for _ in range(5))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(actual) == 15
    assert all(all(map(torch.equal, one, expected)) for one in actual)
    assert calls


@needs_team
def test_one_chunk_wakes_nobody(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_CHUNK_WORK", 1 << 30)
    torch.set_num_threads(2)
    outcome(*case("sparse"))
    assert not calls


@kernel
def _count(chunks: Any, counts: Any, members: Any) -> None:
    member = share_out(chunks)
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        counts[chunk] += 1
        members[chunk] = member
        chunk = next_chunk(chunks)


@needs_team
@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("n_chunks", [1, 2, 7, 200])
def test_each_chunk_is_taken_once(n_threads: int, n_chunks: int, calls: list[int]) -> None:
    for _ in range(20):
        counts, members = np.zeros(n_chunks, np.int64), np.full(n_chunks, -1)
        run_chunks(_count, n_threads, n_chunks, counts, members)
        assert (counts == 1).all()
        assert (members >= 0).all()
        assert (members < n_threads).all()
    assert (n_threads == 1 or n_chunks == 1) == (not calls)


_OUT_OF_BOUNDS = """
import sys
import numpy as np
import torch
sys.path.insert(0, {tests!r})
from test_team import _count, run_chunks, team
assert team.runtime().parallel
for n_chunks in (8, 9):
    run_chunks(_count, 2, n_chunks, np.zeros(8, np.int64), np.zeros(8, np.int64))
"""


@needs_team
def test_an_index_out_of_bounds_is_raised_by_the_call(tmp_path: Path) -> None:
    """Nothing else is ever raised in a kernel, and this is where NUMBA_BOUNDSCHECK checks indices."""
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    code = _OUT_OF_BOUNDS.format(tests=str(Path(__file__).parent))
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "IndexError: index is out of bounds" in result.stderr


@kernel
def _work_for_long(chunks: Any, out: Any) -> None:
    share_out(chunks)
    chunk = next_chunk(chunks)
    while chunk < chunks[1]:
        x = 1.0
        while x < 2e7:
            x = x + 1.0 / x * x
        out[chunk] = x
        chunk = next_chunk(chunks)


@needs_team
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no such timer")
def test_nobody_works_on_after_an_interrupt(calls: list[int]) -> None:
    """A signal waits for the end of compiled code, and that waits for the team."""
    out = np.zeros(8)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def work() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        run_chunks(_work_for_long, 2, 8, out)

    run_chunks(_work_for_long, 1, 1, np.zeros(1))  # compiled
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert (out > 0).all()
        assert not calls  # it is raised before
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@needs_team
def test_a_team_that_keeps_waiting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(team, "perf_counter", lambda: now)
    monkeypatch.setattr(team._Teams, "paid_until", 0.0)

    def lose(seconds: float) -> None:
        team.look_at(np.array([0, 0, int(seconds * 1e9)]))

    lose(-1.0)  # a wait that was shorter than the work
    lose(0.009)
    assert team.runtime().parallel
    lose(0.009)
    assert not team.runtime().parallel
    now += 0.009 / team._SHARE
    assert team.runtime().parallel
    for _ in range(1000):  # a little now and then
        lose(0.001)
        now += 0.0011 / team._SHARE
        assert team.runtime().parallel


FORKED = """
import os, sys, warnings
import torch

warnings.simplefilter("ignore", DeprecationWarning)  # the fork is the point
torch.set_num_threads(2)
torch.randn(1 << 22).exp()  # of PyTorch's team
from gatv2 import Graph, gatv2_attention
query, attn = torch.randn(400, 2, 8), torch.randn(2, 8)
graph = Graph.from_edge_index(torch.randint(400, (2, 9000)), 400)

def attend():
    from gatv2.numba import team, threads
    threads._CHUNK_WORK, threads.look_at = 1 << 10, lambda counters: None
    return gatv2_attention(query, query, attn, graph, kernel="numba"), team.runtime().parallel > 0

if sys.argv[1] == "parent first":
    expected, has_team = attend()
    assert has_team
child = os.fork()
if child == 0:
    actual, has_team = attend()
    is_equal = sys.argv[1] != "parent first" or torch.equal(actual, expected)
    os._exit(0 if is_equal and not has_team else 1)
assert os.waitpid(child, 0)[1] == 0
assert attend()[1]
"""


@needs_team
@needs_fork
@pytest.mark.parametrize("order", ["parent first", "child first"])
def test_a_forked_child_has_no_team(order: str) -> None:
    """In a process of its own: this one may have loaded JAX, which cannot be forked."""
    subprocess.run([sys.executable, "-c", FORKED, order], check=True, timeout=120)


WITHOUT_TORCH = """
import sys
import numpy as np
from gatv2.numba import team, threads
from gatv2.numba.call import ArrayArguments
from gatv2.sparse.numba_kernel import Adjacency, Plan

threads._CHUNK_WORK = 1 << 10
generator = np.random.default_rng(0)
query = generator.standard_normal((300, 2, 8), np.float32)
ptr = np.arange(301, dtype=np.int32) * 20
graph = Adjacency(ptr, generator.integers(300, size=6000, dtype=np.int32))
outs = []
for n_threads in (1, 2, 3):
    arguments = ArrayArguments(
        query, query, query[0], None, None, graph, None, 1, 0, 0.2, 0.0, False, n_threads
    )
    outs.append(Plan(arguments).forward(arguments)[0])
assert all(np.array_equal(out, outs[0]) for out in outs)
print("torch" in sys.modules, *team.runtime())
"""


def test_there_is_none_without_torch() -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False 0 0\n"


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_there_is_none_elsewhere(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert team._runtime.__wrapped__() == (0, 0)


@pytest.mark.parametrize("error", [OSError, AttributeError])
def test_there_is_none_of_an_unknown_runtime(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", load)
    assert team._runtime.__wrapped__() == (0, 0)


def test_python_is_asked_for_help_with_no_less_than_before() -> None:
    count: Callable[[int, int], int] = threads._count_helpers
    least = threads._WORTH_A_HELPER
    assert least * threads._CHUNK_WORK == 1 << 20
    assert [count(4, n) for n in (2, least, 2 * least, 3 * least)] == [0, 0, 1, 2]
    assert count(4, 9 * least) == 3
    assert count(64, threads._MAX_CHUNKS) == 63


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_two_threads_share_a_line(dtype: Any) -> None:
    rows = empty_rows(3, 5, dtype)
    ends = [row[:5].ctypes.data + row[:5].nbytes for row in rows]
    starts = [row.ctypes.data for row in rows]
    assert not any(start % LINE_BYTES for start in starts)
    assert all(b - a >= LINE_BYTES for a, b in zip(ends[:-1], starts[1:], strict=True))
    assert empty_rows(3, 0, dtype).size == 0
    for _ in range(10):
        sums = zeros((3, 16), np.dtype(dtype))
        assert sums.ctypes.data % LINE_BYTES == 0
        assert not sums.any()


def test_buffers_are_kept_and_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "_buffers", scores._Buffers())  # not those of other tests
    tiles = tiles_of(5, 3, False)
    (one,) = own_buffers(tiles, 1)
    assert own_buffers(tiles, 1)[0] is one
    (three,) = own_buffers(tiles, 3)
    assert {len(x) for x in three} == {3}
    assert own_buffers(tiles, 2)[0] is three


FORKED_BEFORE = """
import multiprocessing, os, sys, warnings
import torch

warnings.simplefilter("ignore", DeprecationWarning)  # the fork is the point
if sys.argv[1] == "os.fork":
    import gatv2
torch.set_num_threads(2)
torch.randn(1 << 22).exp()  # of PyTorch's team

def attend():
    from gatv2 import gatv2_attention
    from gatv2.numba import team, threads
    threads._CHUNK_WORK = 1 << 10
    query, attn = torch.zeros(400, 2, 8), torch.zeros(2, 8)
    gatv2_attention(query, query, attn, torch.zeros(2, 9000, dtype=torch.int64), kernel="numba")
    sys.exit(team.runtime().parallel > 0)

if sys.argv[1] == "os.fork":
    child = os.fork()
    if child == 0:
        attend()
    assert os.waitpid(child, 0)[1] == 0
else:
    child = multiprocessing.get_context("fork").Process(target=attend)
    child.start()
    child.join()
    assert child.exitcode == 0
"""


@needs_team
@needs_fork
@pytest.mark.parametrize("way", ["os.fork", "multiprocessing"])
def test_nor_has_one_that_loads_kernels_itself(way: str) -> None:
    subprocess.run([sys.executable, "-c", FORKED_BEFORE, way], check=True, timeout=120)


FLUSHED = """
import torch
from gatv2 import gatv2_attention
from gatv2.numba import threads

threads._CHUNK_WORK, threads.look_at = 1 << 10, lambda counters: None
n_nodes = 4000
query, key, attn = torch.randn(n_nodes, 2, 8), torch.full((n_nodes, 2, 8), 1e-40), torch.randn(2, 8)
edge_index = torch.randint(n_nodes, (2, 5 * n_nodes))
torch.set_num_threads(2)
torch.randn(1 << 22).exp()  # starts the team, before the switch
if not torch.set_flush_denormal(True):
    print("unsupported")
for n_threads in (1, 2, 2, 2):
    torch.set_num_threads(n_threads)
    out = gatv2_attention(query, key, attn, edge_index, kernel="numba")
    print(torch.count_nonzero(out.view(torch.int32)).item())
"""


@needs_team
@pytest.mark.skipif(not team._IS_X86, reason="its mode is known of x86 alone")
def test_members_flush_as_their_caller_does() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FLUSHED], check=True, timeout=120, capture_output=True, text=True
    )
    assert done.stdout.split() == ["0"] * 4
