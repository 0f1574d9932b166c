"""Memory that is kept between calls: nobody's twice, bounded, never read before it is written."""

import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from gatv2 import gatv2_attention, release_scratch
from gatv2.numba import scratch as module
from gatv2.numba import threads
from gatv2.numba.scratch import Scratch
from gatv2.numba.threads import run_chunks

N_BYTES = 1 << 23


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    release_scratch()
    yield
    release_scratch()


def gradients(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    inputs = normal(50, 2, 8), normal(50, 2, 8), normal(2, 8)
    graph = torch.randint(50, (2, 400), generator=generator)
    out = gatv2_attention(*inputs, graph, kernel="numba")
    cotangent = torch.randn(out.shape, generator=generator)
    return list(torch.autograd.grad(out, inputs, cotangent))


def test_it_is_kept_and_released() -> None:
    with Scratch(N_BYTES) as memory:
        address = memory.ctypes.data
        assert memory.shape == (N_BYTES,)
        assert not module._kept
    with Scratch(N_BYTES - 5) as memory:
        assert memory.ctypes.data == address
    release_scratch()
    assert not module._kept


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no such timer")
def test_no_helper_outlives_a_call_that_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper writes to memory that the caller gives away once the call has ended."""
    monkeypatch.setattr(threads, "ask_for_team", lambda *_: False)  # no team: Python's threads help
    has_ended: list[bool] = []
    all_work = threading.Barrier(3)

    def loop(_chunks: object) -> None:
        all_work.wait(timeout=60)
        if threading.current_thread() is threading.main_thread():
            signal.setitimer(signal.ITIMER_REAL, 0.1)  # by then it waits for the others
        else:
            time.sleep(0.5)
            has_ended.append(True)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_chunks(loop, 3, threads._MAX_CHUNKS)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert has_ended == [True, True]


def test_nobody_has_anothers() -> None:
    with Scratch(N_BYTES) as one, Scratch(N_BYTES) as other:
        one.fill(1)
        other.fill(2)
        assert one.all()
        assert (one == 1).all()
    with Scratch(N_BYTES // 2) as one, Scratch(N_BYTES // 2) as other:
        assert not np.shares_memory(one, other)


def test_so_much_is_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KEPT", 3 * N_BYTES)
    with Scratch(N_BYTES), Scratch(N_BYTES), Scratch(N_BYTES), Scratch(N_BYTES):
        pass
    assert sum(map(len, module._kept)) == 3 * N_BYTES
    with Scratch(4 * N_BYTES):
        pass
    assert sum(map(len, module._kept)) <= 3 * N_BYTES


def test_larger_memory_takes_the_place_of_smaller() -> None:
    """So that a thread whose calls need more and more keeps no more than the last one needed."""
    for n in range(1, 5):
        with Scratch(n * N_BYTES):
            pass
    assert list(map(len, module._kept)) == [4 * N_BYTES]


def test_what_is_not_marked_as_free_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    marked: list[int] = []

    def advise(memory: mmap.mmap, advice: str) -> None:
        if advice == "MADV_FREE":
            marked.append(len(memory))

    monkeypatch.setattr(module, "_advise", advise)
    monkeypatch.setattr(module, "_MOST_UNMARKED", 3 * N_BYTES)
    with Scratch(N_BYTES), Scratch(2 * N_BYTES):
        pass
    assert not marked
    with Scratch(2 * N_BYTES), Scratch(N_BYTES), Scratch(1 << 21):
        pass
    assert marked == [2 * N_BYTES]  # it came last, when the others were there
    with Scratch(4 * N_BYTES):
        pass
    assert marked[1:] == [4 * N_BYTES]


def test_an_error_gives_it_back() -> None:
    with pytest.raises(ZeroDivisionError), Scratch(N_BYTES):
        raise ZeroDivisionError
    assert len(module._kept) == 1


@pytest.mark.parametrize("left", [0, 255])
def test_what_was_left_there_is_not_read(left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradients(0)
    monkeypatch.setattr(module, "_LEAST_KEPT", 1)
    with Scratch(N_BYTES) as memory:
        memory.fill(left)
    assert all(map(torch.equal, gradients(0), expected))
    (kept,) = module._kept
    assert len(kept) == N_BYTES
    assert any(byte != left for byte in kept[:1000])  # it has been used


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [gradients(seed) for seed in range(8)]
    monkeypatch.setattr(module, "_LEAST_KEPT", 1)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for actual, one in zip(pool.map(gradients, range(8)), expected, strict=True):
                assert all(map(torch.equal, actual, one))


FORKED = """
import os
from gatv2.numba.scratch import Scratch
from gatv2.numba.threads import run_chunks
with Scratch(1 << 23) as memory:
    memory.fill(1)
    child = os.fork()
    if child == 0:
        memory.fill(2)
        os._exit(0)
    os.waitpid(child, 0)
    assert (memory == 1).all()
    print("its own")
"""


FORKED_UNDER_A_LOCK = """
import os, signal
from gatv2.numba import scratch
with scratch._lock:  # as by a thread of which the child knows nothing
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        with scratch.Scratch(1 << 23):
            os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("did not wait")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(
    ("program", "printed"), [(FORKED, "its own\n"), (FORKED_UNDER_A_LOCK, "did not wait\n")]
)
def test_a_forked_child(program: str, printed: str) -> None:
    """In a process of its own, as another test may have loaded what must not be forked."""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == printed


def test_a_hint_that_the_system_refuses_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1)
    monkeypatch.setattr(mmap, "MADV_FREE", -1)
    with Scratch(1 << 26) as memory:
        memory[:] = 1
    assert len(module._kept) == 1
