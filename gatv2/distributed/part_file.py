"""A partition in files: one for each rank, which reads its own alone."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gatv2.distributed.agreement import gather_from_ranks, place_in
from gatv2.distributed.cut import halo_counts_of
from gatv2.distributed.part import Data, PartData
from gatv2.graph import Graph
from gatv2.graph.file import TENSORS
from gatv2.tensor_file import PathLike, decimal, load_tensors, save_tensors

_GRAPHS = ("local", "remote")
_TENSORS = ("edge_id", "is_local", "halo", "sent")
_NAMES = _TENSORS + tuple(f"{graph}.{name}" for graph in _GRAPHS for name in TENSORS)


def save(partition: PartData, directory: PathLike) -> None:
    """Write a part to its file; see :meth:`gatv2.distributed.Partition.save`."""
    tensors: dict[str, Tensor] = {name: getattr(partition, name) for name in _TENSORS}
    for name in _GRAPHS:
        graph = getattr(partition, name)
        tensors |= {
            f"{name}.{field.name}": value
            for field in fields(graph)
            if isinstance(value := getattr(graph, field.name), Tensor)
        }
    path = _path(directory, partition.rank, partition.n_parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "kind": "partition",
        "rank": str(partition.rank),
        "bounds": json.dumps(partition.bounds),
        "sent_counts": json.dumps(partition.sent_counts),
        "split_id": partition.split_id,
        "flow": partition.flow,
    }
    save_tensors(path, tensors, metadata)


def load(
    directory: PathLike, group: "dist.ProcessGroup | None", build: type[Data], *, mmap: bool
) -> Data:
    """Read this rank's part; see :meth:`gatv2.distributed.Partition.load`."""
    rank, n_parts = place_in(group)
    loaded: list[Data] = []

    def read() -> tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        path = _path(directory, rank, n_parts)
        _check_is_there(path, rank, n_parts)
        tensors, metadata = load_tensors(path, "partition", _NAMES, mmap=mmap)
        try:
            part = _part(tensors, metadata, group, build)
            _check(part, rank, n_parts)
        except (KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{str(path)!r} holds no part of a graph: {reason}") from error
        loaded.append(part)
        return part.split_id, part.bounds, part.sent_counts, part.halo_counts

    split_ids, bounds, sent, fetched = zip(*gather_from_ranks(read, group), strict=True)
    fits = list(zip(*sent, strict=True)) == list(fetched)
    if not fits or len(set(split_ids)) > 1 or len(set(bounds)) > 1:
        of_ranks = ", ".join(f"rank {rank}: {split_id}" for rank, split_id in enumerate(split_ids))
        raise ValueError(
            "the parts that the processes have loaded do not fit one another; their splits are "
            f"{of_ranks}: load parts that were saved of one split"
        )
    (part,) = loaded
    return part


def _path(directory: PathLike, rank: int, n_parts: int) -> Path:
    return Path(directory) / f"part-{rank:05d}-of-{n_parts:05d}.safetensors"


def _check_is_there(path: Path, rank: int, n_parts: int) -> None:
    if not path.exists():
        others = sorted(other.name for other in path.parent.glob("part-*-of-*.safetensors"))
        there = f"{others[0]} and {len(others) - 1} more" if others else "no parts"
        raise FileNotFoundError(
            f"there is no {path.name!r} for rank {rank} of {n_parts} processes in "
            f"{str(path.parent)!r}, but {there}: split the graph into as many parts as there are "
            "processes, and give each process its own"
        )


def _part(
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    group: "dist.ProcessGroup | None",
    build: type[Data],
) -> Data:
    bounds, sent_counts = (_numbers(metadata[name]) for name in ("bounds", "sent_counts"))
    graphs: dict[str, Any] = {
        name: {
            key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(name)
        }
        for name in _GRAPHS
    }
    halo = tensors["halo"]
    _check_numbers(halo, "`halo`", halo.numel())
    for name, graph in graphs.items():
        _require(
            "query_id" in graph and "key_id" in graph,
            f"{name!r} must have the nodes' numbers for dropout; it has not",
        )
        graph["flow"] = metadata.get("flow", "target_to_source")  # older files have none
    return build(
        rank=decimal(metadata["rank"]),
        bounds=bounds,
        local=Graph(**graphs["local"], n_keys=tensors["local.query_ptr"].numel() - 1),
        remote=Graph(**graphs["remote"], n_keys=halo.numel()),
        halo_counts=halo_counts_of(halo, bounds),
        sent_counts=sent_counts,
        split_id=metadata["split_id"],
        group=group,
        **{name: tensors[name] for name in _TENSORS},
    )


def _numbers(text: str) -> tuple[int, ...]:
    numbers = json.loads(text)
    _require(
        isinstance(numbers, list) and all(type(number) is int for number in numbers),
        f"bounds and counts must be lists of integers; got {text[:80]}",
    )
    return tuple(numbers)


def _check(part: PartData, rank: int, n_parts: int) -> None:
    """Raise a ValueError unless a part is one that attention can run on."""
    bounds = part.bounds
    _require(
        (part.rank, part.n_parts) == (rank, n_parts),
        f"it must be that of rank {rank} of {n_parts}; it is that of {part.rank} of {part.n_parts}",
    )
    _require(bounds[0] == 0 and sorted(bounds) == list(bounds), f"{bounds} are no bounds")
    start, end = bounds[rank : rank + 2]
    for graph, n_keys in ((part.local, end - start), (part.remote, part.halo.numel())):
        graph.check()
        _require(
            (graph.n_queries, graph.n_keys) == (end - start, n_keys),
            f"it must have {end - start} queries and {n_keys} keys; it has {graph.n_queries} and "
            f"{graph.n_keys}",
        )
    n_edges = part.local.n_edges + part.remote.n_edges
    is_local = part.is_local
    _require(
        (is_local.dtype, is_local.shape) == (torch.bool, (n_edges,))
        and int(is_local.sum()) == part.local.n_edges,
        f"`is_local` must be bool and tell {part.local.n_edges} of {n_edges} edges; it does not",
    )
    _check_edge_id(part.edge_id, n_edges)
    _check_numbers(part.sent, "`sent`", sum(part.sent_counts))
    _require(
        bool((part.halo.diff() > 0).all())
        and sum(part.halo_counts) == part.halo.numel()
        and part.halo_counts[rank] == 0,
        "`halo` must ascend over nodes of other ranks; it does not",
    )
    _require(
        len(part.sent_counts) == n_parts
        and min(part.sent_counts) >= 0
        and bool(((part.sent >= 0) & (part.sent < end - start)).all()),
        f"`sent` must be rows in [0, {end - start}), counted for {n_parts} ranks; it is not",
    )


def _check_edge_id(edge_id: Tensor, n_edges: int) -> None:
    _require(
        edge_id.dtype in (torch.int32, torch.int64) and edge_id.shape == (n_edges,),
        f"`edge_id` must be {n_edges} integers; got {edge_id.dtype} with shape {tuple(edge_id.shape)}",
    )
    n_given = int((edge_id >= 0).sum())
    given, added = edge_id[:n_given], edge_id[n_given:]  # self-loops come last
    _require(
        bool((given.diff() > 0).all() and (given >= 0).all() and (added == -1).all()),
        "`edge_id` must ascend, with -1 behind for added self-loops; it does not",
    )


def _check_numbers(tensor: Tensor, name: str, n: int) -> None:
    _require(
        (tensor.dtype, tensor.shape) == (torch.int64, (n,)),
        f"{name} must be int64 with shape ({n},); got {tensor.dtype} with shape {tuple(tensor.shape)}",
    )


def _require(is_met: bool, otherwise: str) -> None:
    if not is_met:
        raise ValueError(otherwise)
