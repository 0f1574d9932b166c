"""Processes that talk over gloo, for tests: started anew, watched, and never waited for without end."""

import datetime
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn


def run_processes(
    function: Callable[..., Any],
    n_processes: int,
    path: Path,
    *arguments: Any,
    join_within: float = 180,
    group_timeout: float = 60,
) -> list[Any]:
    """What `function(rank, *arguments)` returns in each of some processes, which form a group.

    Args:
        function: a module's own; what it raises in a process is raised here, with that traceback.
        n_processes: number of processes.
        path: a directory of this run's own.
        *arguments: of the function.
        join_within: seconds after which all processes are killed, and a TimeoutError is raised.
        group_timeout: seconds that a process waits for another one in a collective operation.
    """
    context: Any = spawn(
        _run, (function, n_processes, str(path), group_timeout, arguments), n_processes, join=False
    )
    until = time.monotonic() + join_within
    while not context.join(timeout=max(0.0, until - time.monotonic())):
        if time.monotonic() >= until:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{n_processes} processes did not end in {join_within} s")
    return [torch.load(path / f"{rank}.pt", weights_only=False) for rank in range(n_processes)]


def _run(
    rank: int,
    function: Callable[..., Any],
    n_processes: int,
    path: str,
    group_timeout: float,
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{path}/store",
        rank=rank,
        world_size=n_processes,
        timeout=datetime.timedelta(seconds=group_timeout),
    )
    torch.save(function(rank, *arguments), f"{path}/{rank}.pt")
    dist.barrier()
    # not destroy_process_group: holding the GIL, it can join gloo threads that wait for the GIL
    os._exit(0)
