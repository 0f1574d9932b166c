"""What all processes of a group have to agree on, before they rely on one another.

Processes that exchange different things wait for each other, abort, or compute something wrong. So
whatever they do together begins with a meeting: each tells the others what it is about to do, in a
header of one fixed size, which fits theirs whatever that is. Different headers are an error in every
process.
"""

import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from gatv2.torch_internals import without_transforms

T = TypeVar("T")


class Kind(Protocol):
    """What processes do together: a named tuple of what they must have in common, the first `what`."""

    @property
    def what(self) -> str:
        """In words."""

    def _asdict(self) -> dict[str, object]: ...

    def __hash__(self) -> int: ...


class Making(NamedTuple):
    """Processes make or load parts of a graph."""

    what: str = "a partition is made or loaded"


class Refusal(NamedTuple):
    """A process can't do what the others are about to do."""

    what: str


class Header(NamedTuple):
    """What a process tells at a meeting, in a fixed number of bytes."""

    kind: int
    """A digest of the kind, 0 for a refusal."""
    number: int
    """The number of the group's meeting at which this began."""
    seed: int = 0
    weights: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    """A sketch of the layer's parameters."""


_FORMAT = struct.Struct("<3q5d")
_n_meetings: "WeakKeyDictionary[dist.ProcessGroup, int]" = WeakKeyDictionary()


class Meeting:
    """The headers of all processes of a group, on their way from when this is made."""

    def __init__(
        self,
        kind: Kind,
        group: "dist.ProcessGroup | None",
        *,
        number: int | None = None,
        seed: int = 0,
        weights: tuple[float, ...] = Header._field_defaults["weights"],
    ) -> None:
        """Send this process's header.

        Args:
            kind: what it is about to do.
            group: the processes, all of which meet.
            number: the meeting at which it began; None for this one.
            seed: see `Header`.
            weights: see `Header`.
        """
        self.number = _n_meetings_of(group)
        _n_meetings[_world(group)] = self.number + 1
        self._kind, self._group = kind, group
        number = self.number if number is None else number
        header = _FORMAT.pack(_digest(kind), number, seed, *weights)
        device = torch.device(dist.get_backend_config(group).partition(":")[0])
        sent = torch.tensor(list(header), dtype=torch.uint8, device=device)
        self._received = sent.new_empty(dist.get_world_size(group), _FORMAT.size)
        self._work = dist.all_gather(list(self._received), sent, group=group, async_op=True)

    def agreed(self) -> list[Header]:
        """Wait for all headers, by rank.

        Raises:
            RuntimeError: a process refuses, or does something else than another one.
            ValueError: all do the same, but differ in what they must have in common.
        """
        assert self._work is not None
        self._work.wait()
        headers = [_unpacked(row) for row in self._received.cpu()]
        if len({header.kind for header in headers}) > 1 or not headers[0].kind:
            raise _difference(_gathered(self._kind, self._group))
        numbers = [header.number for header in headers]
        if len(set(numbers)) > 1:
            raise RuntimeError(
                f"the processes of the group have {self._kind.what} of different calls: of those that "
                f"began at meeting {by_ranks(numbers)}: {_SAME_ORDER}"
            )
        return headers


def _unpacked(row: Tensor) -> Header:
    kind, number, seed, *weights = _FORMAT.unpack(bytes(row.tolist()))
    return Header(kind, number, seed, tuple(weights))


@lru_cache
def _digest(kind: Kind) -> int:
    """Equal in all processes for equal kinds; kinds recur, and are digested once."""
    if isinstance(kind, Refusal):
        return 0
    digest = blake2b(repr(kind).encode(), digest_size=7).digest()
    return 1 + int.from_bytes(digest, "little")


_SAME_ORDER = (
    "call the same layers in the same order in all processes, with backward passes between the same"
)


def _difference(kinds: Sequence[Kind]) -> Exception:
    """The error that names in what processes differ, and which do."""
    refusals = [
        f"rank {rank}: {kind.what}" for rank, kind in enumerate(kinds) if isinstance(kind, Refusal)
    ]
    if refusals:
        return RuntimeError(f"another process of the group failed: {'; '.join(refusals)}")
    whats = [kind.what for kind in kinds]
    if len(set(whats)) > 1:
        return RuntimeError(
            f"the processes of the group do different things: {by_ranks(whats)}: {_SAME_ORDER}"
        )
    fields = [kind._asdict() for kind in kinds]
    differences = (
        f"`{name}` is {by_ranks([of_rank[name] for of_rank in fields])}"
        for name in fields[0]
        if len({of_rank[name] for of_rank in fields}) > 1
    )
    return ValueError(
        f"{whats[0]} must be the same in all processes, but {'; '.join(differences)}: call it in each "
        "with the same options, dtypes and sizes, and in the same mode"
    )


def by_ranks(values: Sequence[object]) -> str:
    """Different values and who has them.

    Example:
        >>> by_ranks([0.6, 0.0, 0.6])
        '0.6 on ranks 0, 2, and 0.0 on rank 1'
    """
    ranks: defaultdict[object, list[str]] = defaultdict(list)
    for rank, value in enumerate(values):
        ranks[value].append(str(rank))
    return ", and ".join(
        f"{value} on rank{'s' if len(those) > 1 else ''} {', '.join(those)}"
        for value, those in ranks.items()
    )


def told(call: Callable[[], T], group: "dist.ProcessGroup | None") -> T:
    """What `call` returns; if it raises before it has met the other processes, they are told why.

    Without that, they would wait for this one.
    """
    n_meetings = _n_meetings_of(group)
    try:
        return call()
    except Exception as error:
        if _n_meetings_of(group) == n_meetings:
            with without_transforms(), suppress(RuntimeError):
                Meeting(Refusal(f"{type(error).__name__}: {error}"), group).agreed()
        raise


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

    Args:
        make: called once in each process; what it returns is pickled.
        group: the processes, all of which call this function.

    Raises:
        RuntimeError: `make` raised in another process.
        Exception: what `make` raised in this one.
    """
    mine = told(make, group)
    Meeting(Making(), group).agreed()
    return _gathered(mine, group)


def _gathered(mine: T, group: "dist.ProcessGroup | None") -> list[T]:
    gathered = [mine] * dist.get_world_size(group)
    dist.all_gather_object(gathered, mine, group=group)
    return gathered


def _world(group: "dist.ProcessGroup | None") -> "dist.ProcessGroup":
    group = group or dist.group.WORLD
    assert group is not None
    return group


def _n_meetings_of(group: "dist.ProcessGroup | None") -> int:
    return _n_meetings.get(_world(group), 0)
