"""What all processes of a group have to agree on, before they rely on one another."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def place_in(group: "dist.ProcessGroup | None") -> tuple[int, int]:
    """This process's rank in a group and the group's size; None for the default group.

    Raises:
        RuntimeError: there is no group, or this process is not in it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "torch.distributed is not initialized: start the program with torchrun and call "
            "torch.distributed.init_process_group('gloo') first; in one process there is "
            "Partition.split(graph, n_parts)"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise RuntimeError("this process is not in the group: only its members hold parts")
    return rank, dist.get_world_size(group)


def gather_from_ranks(make: Callable[[], T], group: "dist.ProcessGroup | None") -> list[T]:
    """What `make` returns in each process of a group, by rank; an error in one is one in all.

    Without that, a process that raises leaves the others waiting for it.

    Args:
        make: called once in each process; what it returns is pickled.
        group: the processes, all of which call this function.

    Raises:
        RuntimeError: `make` raised in another process.
        Exception: what `make` raised in this one.
    """
    failure: Exception | None = None
    mine: T | None = None
    try:
        mine = make()
    except Exception as error:
        failure = error
    reason = None if failure is None else f"{type(failure).__name__}: {failure}"
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, (mine, reason), group=group)
    if failure is not None:
        raise failure
    reasons = [f"rank {rank}: {reason}" for rank, (_, reason) in enumerate(gathered) if reason]
    if reasons:
        raise RuntimeError(f"another process of the group failed: {'; '.join(reasons)}")
    return [value for value, _ in gathered]
