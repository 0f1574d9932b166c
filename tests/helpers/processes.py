"""Processes that talk over gloo, for tests: started anew, watched, and never waited for without end.

Where that can be done, they are forked from a server that has imported what all of them need, and done
nothing else: to import PyTorch takes longer than most of their work.
"""

import datetime
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Collection
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

GROUP_TIMEOUT = datetime.timedelta(minutes=5)
"""How long a process waits for another one, which may be compiling kernels beside other tests."""

PRELOADED = (
    *("torch", "torch._dynamo", "torch.nn.parallel", "numba"),
    *("gatv2.distributed", "gatv2.model", "gatv2.testing", "gatv2.sparse.numba_kernel"),
)
"""Modules that processes find imported."""


def _context() -> Any:
    """How processes are started."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def run_processes(
    function: Callable[..., Any],
    n_processes: int,
    path: Path,
    *arguments: Any,
    join_within: float = 600,
    lost: Collection[int] = (),
) -> dict[int, Any]:
    """What `function(rank, *arguments)` returns in each of some processes, which form a group.

    Args:
        function: a module's own.
        n_processes: number of processes.
        path: a directory of this run's own.
        *arguments: of the function.
        join_within: seconds after which all processes are killed.
        lost: ranks that are not waited for, as they die or stop in between.

    Raises:
        AssertionError: the function raised in a process, whose traceback is the message.
        TimeoutError: the processes did not end in time.
    """
    context = _context()
    options = (n_processes, path, not lost)
    processes = [
        context.Process(target=_run, args=(rank, function, arguments, *options))
        for rank in range(n_processes)
    ]
    for process in processes:
        process.start()
    until = time.monotonic() + join_within
    awaited: dict[Any, Any] = {
        process.sentinel: process for rank, process in enumerate(processes) if rank not in lost
    }
    try:
        while awaited:
            ended = wait(list(awaited), timeout=max(0.0, until - time.monotonic()))
            if not ended:
                raise TimeoutError(f"processes did not end in {join_within} s")
            for sentinel in ended:
                process = awaited.pop(sentinel)
                process.join()
                if process.exitcode != 0:
                    texts = [file.read_text() for file in sorted(path.glob("*.error"))]
                    raise AssertionError("\n".join((f"exit code {process.exitcode}", *texts)))
    finally:
        for process in processes:
            process.kill()
            process.join()
    ranks = [rank for rank in range(n_processes) if rank not in lost]
    return {rank: torch.load(path / f"{rank}.pt", weights_only=False) for rank in ranks}


def _run(
    rank: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    n_processes: int,
    path: Path,
    meets_all: bool,
) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{path}/store",
            rank=rank,
            world_size=n_processes,
            timeout=GROUP_TIMEOUT,
        )
        torch.save(function(rank, *arguments), path / f"{rank}.pt")
        if meets_all:
            dist.barrier()
    except BaseException:
        (path / f"{rank}.error").write_text(f"rank {rank}: {traceback.format_exc()}")
        os._exit(1)
    # not destroy_process_group: holding the GIL, it can join gloo threads that wait for the GIL
    os._exit(0)
