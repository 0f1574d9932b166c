"""Parts in files: each process reads its own, and all refuse what does not belong together."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch import Tensor

from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.distributed import Partition
from gatv2.options import Flow
from gatv2.tensor_file import save_tensors

N_PROCESSES = 3
DO_NOT_FIT = "the parts that the processes have loaded do not fit one another"
needs_gloo = pytest.mark.skipif(
    not dist.is_gloo_available(), reason="PyTorch was built without gloo"
)


def graph_of(seed: int) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    graph = Graph.from_edge_index(torch.randint(15, (2, 60), generator=generator), 15)
    return replace(graph, head_mask=torch.rand(60, 2, generator=generator) < 0.8)


def file_of(directory: Path, rank: int) -> Path:
    return directory / f"part-{rank:05d}-of-{N_PROCESSES:05d}.safetensors"


def values_of(partition: Partition) -> dict[str, Any]:
    """All that a part has, but for its group."""
    values = {field.name: getattr(partition, field.name) for field in fields(partition)}
    for name in ("local", "remote"):
        graph = values.pop(name)
        values |= {f"{name}.{field.name}": getattr(graph, field.name) for field in fields(graph)}
    del values["group"]
    return values


def assert_alike(one: Partition, other: Partition) -> None:
    values = values_of(other)
    for name, value in values_of(one).items():
        if isinstance(value, Tensor):
            assert torch.equal(value, values[name]), name
        else:
            assert value == values[name], name


def test_another_part_is_noticed() -> None:
    part, other, _ = Partition.split(graph_of(0), N_PROCESSES)
    assert_alike(part, replace(part))
    mask = part.local.head_mask
    assert mask is not None
    for wrong in (
        other,
        replace(part, split_id=f"{part.split_id}0"),
        replace(part, edge_id=part.edge_id + 1),
        replace(part, local=replace(part.local, head_mask=~mask)),
    ):
        with pytest.raises(AssertionError):
            assert_alike(part, wrong)


WRONG: dict[str, tuple[str, Callable[[Partition], Partition]]] = {
    # a file that is whole, and what it says is wrong with it
    "sent rows that are not there": (
        "`sent` must be rows in [0, 6)",
        lambda part: replace(part, sent=part.sent + 100),
    ),
    "sent rows of another number": (
        "`sent` must be int64 with shape (9,)",
        lambda part: replace(part, sent=part.sent[1:]),
    ),
    "sent to other ranks": (
        DO_NOT_FIT,
        lambda part: replace(part, sent_counts=part.sent_counts[::-1]),
    ),
    "counts below zero": (
        "counted for 3 ranks",
        lambda part: replace(part, sent_counts=(len(part.sent) + 1, 0, -1)),
    ),
    "two counts": (
        "`sent` must be int64 with shape (6,)",
        lambda part: replace(part, sent_counts=part.sent_counts[:2]),
    ),
    "a halo of own nodes": (
        "`halo` must ascend over nodes of other ranks",
        lambda part: replace(part, halo=torch.arange(part.remote.n_keys) + part.bounds[1]),
    ),
    "a halo out of range": (
        "`halo` must ascend over nodes of other ranks",
        lambda part: replace(part, halo=part.halo + 15),
    ),
    "a halo that falls": (
        "`halo` must ascend over nodes of other ranks",
        lambda part: replace(part, halo=part.halo.flip(0)),
    ),
    "a halo in int32": (
        "`halo` must be int64",
        lambda part: replace(part, halo=part.halo.int()),
    ),
    "fewer local edges": (
        "`is_local` must be bool and tell 9 of 26 edges",
        lambda part: replace(part, is_local=torch.zeros_like(part.is_local)),
    ),
    "edges without a number": (
        "`edge_id` must be 26 integers",
        lambda part: replace(part, edge_id=part.edge_id[1:]),
    ),
    "edges numbered in floats": (
        "`edge_id` must be 26 integers",
        lambda part: replace(part, edge_id=part.edge_id.float()),
    ),
    "edges that do not ascend": (
        "`edge_id` must ascend",
        lambda part: replace(part, edge_id=part.edge_id.flip(0)),
    ),
    "edges of no number": (
        "`edge_id` must ascend",
        lambda part: replace(part, edge_id=part.edge_id - 1000),
    ),
    "nodes without numbers": (
        "'remote' must have the nodes' numbers for dropout",
        lambda part: replace(part, remote=replace(part.remote, key_id=None)),
    ),
    "a halo of bools": (
        "`halo` must be int64",
        lambda part: replace(part, halo=part.halo > 0),
    ),
    "bounds that fall": (
        "(0, 10, 5, 15) are no bounds",
        lambda part: replace(part, bounds=(0, 10, 5, 15)),
    ),
    "other bounds": (
        "it must have 3 queries",
        lambda part: replace(part, bounds=(0, 2, 5, 15)),
    ),
    "keys out of range": (
        "`key_index` must lie in [0, 8)",
        lambda part: replace(
            part, remote=replace(part.remote, key_index=part.remote.key_index + 8)
        ),
    ),
    "names of fewer nodes": (
        "`key_id` must be",
        lambda part: replace(part, remote=replace(part.remote, key_id=torch.arange(1))),
    ),
    "bounds that are no integers": (
        "must be lists of integers; got [0, 5.0, 10, 15]",
        lambda part: replace(part, bounds=(0, 5.0, 10, 15)),  # type: ignore[arg-type]
    ),
    "another split's name": (DO_NOT_FIT, lambda part: replace(part, split_id="another")),
}
DAMAGED = {
    "fewer processes": "there is no 'part-0000",
    "no file": "there is no 'part-00001-of-00003.safetensors' for rank 1 of 3 processes",
    "a truncated file": "can't be loaded",
    "a changed byte": "it has changed",
    "another graph's part": DO_NOT_FIT,
    "another rank's part": "it must be that of rank 1 of 3; it is that of 2 of 3",
    "a graph": "expected the kind 'partition'; got 'graph'",
}


def message_of(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def check_edges_of_own_queries(part: Partition) -> None:
    """A part made of them alone is the part of the graph, but for heads and the edges' numbers."""
    edge_index = graph_of(0).edge_index[:, part.edge_id]
    forms: dict[Flow, Tensor | np.ndarray[Any, Any]] = {
        "target_to_source": edge_index,
        "source_to_target": edge_index.flip(0).numpy().astype("uint16"),
    }
    for flow, given in forms.items():
        made = Partition.from_edge_index(given, part.bounds, flow=flow)
        assert made.edge_id.tolist() == list(range(part.n_edges))
        local, remote = (replace(x, head_mask=None, flow=flow) for x in (part.local, part.remote))
        expected = replace(part, local=local, remote=remote, edge_id=made.edge_id)
        assert_alike(made, replace(expected, split_id=made.split_id))


def files(rank: int, directory: Path) -> dict[str, str]:
    """Save and load in this process; the errors where something is wrong with the file of rank 1."""
    graph = graph_of(0)
    part = Partition.from_graph(graph)
    assert_alike(part, Partition.split(graph, N_PROCESSES)[rank])
    check_edges_of_own_queries(part)
    part.save(directory / "parts")
    loaded = Partition.load(directory / "parts")
    assert_alike(loaded, part)
    torch.manual_seed(0)
    layer, h = GraphAttentionV2Layer(3, 4, 2), torch.randn(part.n_own, 3)
    assert torch.equal(layer(h, loaded, seed=1), layer(h, part, seed=1))

    pair: Any = dist.new_group([0, 1])
    errors = {}
    if rank < 2:
        errors["fewer processes"] = message_of(lambda: Partition.load(directory / "parts", pair))
    mine = file_of(directory / "parts", rank)
    whole = mine.read_bytes()

    def error_with(spoil: Callable[[], object]) -> str:
        if rank == 1:
            spoil()
        error = message_of(lambda: Partition.load(directory / "parts"))
        mine.unlink(missing_ok=True)
        mine.write_bytes(whole)
        dist.barrier()
        return error

    errors["no file"] = error_with(mine.unlink)
    errors["a truncated file"] = error_with(lambda: mine.write_bytes(whole[:-8]))
    errors["a changed byte"] = error_with(
        lambda: mine.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    )
    errors["another graph's part"] = error_with(
        lambda: Partition.split(graph_of(1), N_PROCESSES)[1].save(directory / "parts")
    )
    errors["another rank's part"] = error_with(
        lambda: mine.write_bytes(file_of(directory / "parts", 2).read_bytes())
    )
    errors["a graph"] = error_with(lambda: save_tensors(mine, {}, {"kind": "graph"}))
    for name, (_, change) in WRONG.items():
        errors[name] = error_with(
            lambda change=change: change(part).save(directory / "parts")  # type: ignore[misc]
        )
    assert_alike(Partition.load(directory / "parts"), part)
    return errors


@needs_gloo
def test_each_process_has_its_file(tmp_path: Path) -> None:
    of_ranks = run_processes(files, N_PROCESSES, tmp_path, tmp_path)
    expected = DAMAGED | {name: text for name, (text, _) in WRONG.items()}
    for rank, errors in of_ranks.items():
        assert errors.keys() == expected.keys() - ({"fewer processes"} if rank == 2 else set())
        for name, error in errors.items():
            assert expected[name] in error, (name, error)


def test_parts_of_a_split_are_saved_by_one_process(tmp_path: Path) -> None:
    parts = Partition.split(graph_of(0), N_PROCESSES)
    for part in parts:
        part.save(tmp_path / "new" / "parts")
    files = sorted((tmp_path / "new" / "parts").iterdir())
    assert files == [file_of(tmp_path / "new" / "parts", rank) for rank in range(N_PROCESSES)]
