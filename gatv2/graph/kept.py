"""What is kept of an edge index or a sparse matrix that comes again: its graph is not prepared again."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TypeAlias, TypeVar, cast
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from gatv2.torch_internals import is_inspectable, is_transformed, made_to_last

MOST_KEPT = 128
"""Edge indices and matrices whose graphs are kept, the newest ones."""
_MOST_READINGS = 4
"""Graphs of one of them, which has been read with other flows or numbers of nodes."""


T = TypeVar("T")


_Kept: TypeAlias = tuple[list[Tensor], object]
"""What something was made of, as it was, and what was made."""


class _Source:
    """An edge index or a matrix, and what was made of it, by how it was read.

    Args:
        reference: to it.
        reading: how it was read first.
        kept: what was made of it then.
    """

    def __init__(self, reference: ReferenceType[object], reading: Hashable, kept: _Kept) -> None:
        self.reference = reference
        self.readings = {reading: kept}


_kept: dict[int, _Source] = {}  # by identity: PyTorch's dictionary of this kind is ten times slower


def prepared_once(
    source: object, parts: Sequence[Tensor], reading: Hashable, prepare: Callable[[], T]
) -> T:
    """Prepare a graph, or find the one that was made of the same object with the same values.

    Values are compared and not the versions of tensors, which miss writes through NumPy or `.data`:
    comparing is many times cheaper than preparing. A graph is kept as long as its source lives, and
    `MOST_KEPT` newer ones have not come.

    Args:
        source: an edge index or a matrix.
        parts: the tensors that it stores.
        reading: how it is read: numbers of nodes, the flow, and whatever else makes another graph of it.
        prepare: makes the graph, or what else takes time.
    """
    if not all(map(is_inspectable, parts)):
        return prepare()
    return prepared_of_values(source, parts, reading, prepare)


def prepared_of_values(
    source: object, parts: Sequence[Tensor], reading: Hashable, prepare: Callable[[], T]
) -> T:
    """As `prepared_once`, of parts that are known to be inspectable."""
    if torch.is_inference_mode_enabled() or is_transformed():
        with made_to_last(parts[0]):
            return _prepared_once(source, parts, reading, prepare)
    return _prepared_once(source, parts, reading, prepare)


def _prepared_once(
    source: object, parts: Sequence[Tensor], reading: Hashable, prepare: Callable[[], T]
) -> T:
    found = _kept.get(id(source))
    if found is not None and found.reference() is source:
        kept = found.readings.get(reading)
        if kept is not None and _are_same(kept[0], parts):
            return cast(T, kept[1])
    made = prepare()
    _keep(source, reading, ([part.detach().clone() for part in parts], made))
    return made


def _are_same(kept: Sequence[Tensor], parts: Sequence[Tensor]) -> bool:
    return len(kept) == len(parts) and all(map(_is_same, kept, parts))


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


def _keep(source: object, reading: Hashable, kept: _Kept) -> None:
    """Keep what was made of a source.

    Without a lock. A forked child would wait for one that a thread of its parent held, and a finalizer
    of what is dropped here, which may make a graph, for its own thread.
    """
    key = id(source)
    found = _kept.get(key)
    if found is not None and found.reference() is source:
        others = [item for item in found.readings.items() if item[0] != reading]
        # not written to, so that others may look at it meanwhile
        found.readings = dict([*others[1 - _MOST_READINGS :], (reading, kept)])
        return
    if found is not None:
        _kept.pop(key, None)  # so that the new one is the newest
    _kept[key] = _Source(ref(source, partial(_forget, key)), reading, kept)
    if len(_kept) > MOST_KEPT:
        for oldest in list(_kept)[:-MOST_KEPT]:
            _kept.pop(oldest, None)


def _forget(key: int, reference: ReferenceType[object]) -> None:
    """Called when a source is no more, by whoever has it last."""
    found = _kept.get(key)
    if found is not None and found.reference is reference:
        _kept.pop(key, None)
