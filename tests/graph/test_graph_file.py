"""A saved graph comes back as it was, or not at all: no change of a file goes unnoticed."""

import json
import os
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gatv2 import Graph, gatv2_attention
from gatv2.graph.check import check_graph
from gatv2.tensor_file import load_tensors, save_tensors

safetensors_torch = pytest.importorskip("safetensors.torch")


def random_graph(n_nodes: int = 7, n_edges: int = 23) -> Graph:
    return Graph.from_edge_index(torch.randint(n_nodes, (2, n_edges)), (n_nodes, n_nodes + 4))


def with_heads() -> Graph:
    return Graph.from_mask(torch.rand(3, 5, 5, 2) < 0.4)


def assert_same(one: Graph, other: Graph) -> None:
    for field in fields(Graph):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, Tensor):
            assert isinstance(b, Tensor), field.name
            assert a.dtype == b.dtype, field.name
            assert torch.equal(a, b), field.name
        else:
            assert a == b, field.name


def test_the_check_rejects_another_graph() -> None:
    graph = random_graph()
    for other in (
        replace(graph, n_keys=graph.n_keys + 1),
        replace(graph, edge_id=graph.edge_id.flip(0)),
        replace(graph, edge_id=graph.edge_id.long()),
        replace(graph, head_mask=torch.ones(graph.n_edges, 2, dtype=torch.bool)),
    ):
        with pytest.raises(AssertionError):
            assert_same(graph, other)
        with pytest.raises(AssertionError):
            assert_same(other, graph)


def one_piece(graph: Graph) -> Graph:
    memory = torch.cat((graph.query_ptr, graph.key_index, graph.query_index, graph.edge_id))
    pieces = memory.split([graph.n_queries + 1, *3 * [graph.n_edges]])
    names = ("query_ptr", "key_index", "query_index", "edge_id")
    return with_changes(graph, dict(zip(names, pieces, strict=True)))


def wide(graph: Graph) -> Graph:
    tensors = {name: x.long() for name, x in vars(graph).items() if isinstance(x, Tensor)}
    return with_changes(graph, tensors)


def with_changes(graph: Graph, changes: dict[str, Any]) -> Graph:
    return replace(graph, **changes)


GRAPHS: dict[str, Callable[[], Graph]] = {
    "bipartite": random_graph,
    "head masks and blocks": with_heads,
    "no edges": lambda: random_graph(3, 0),
    "no nodes": lambda: Graph.from_edge_index(torch.empty(2, 0, dtype=torch.long), 0),
    "a batch": lambda: Graph.batch([random_graph(3, 5), random_graph(2, 9)]),
    "coalesced": lambda: random_graph(3, 30).coalesce(),
    "int64": lambda: wide(random_graph()),
    "numbers of nodes": lambda: replace(random_graph(), query_id=torch.randperm(7)),
    "in one piece of memory": lambda: one_piece(random_graph()),
}


@pytest.mark.parametrize("make", GRAPHS.values(), ids=GRAPHS)
def test_it_comes_back(make: Callable[[], Graph], tmp_path: Path) -> None:
    graph, path = make(), tmp_path / "graph"
    graph.save(path)
    assert_same(Graph.load(path), graph)
    assert_same(Graph.load(str(path)), graph)
    assert [file.name for file in tmp_path.iterdir()] == ["graph"]


def test_a_loaded_graph_attends_as_the_saved_one(tmp_path: Path, dtype: torch.dtype) -> None:
    graph = random_graph()
    graph.save(tmp_path / "graph")
    loaded = Graph.load(tmp_path / "graph")
    query, key = torch.randn(7, 2, 3, dtype=dtype), torch.randn(11, 2, 3, dtype=dtype)
    attn, cotangent = torch.randn(2, 3, dtype=dtype), torch.randn(7, 2, 3, dtype=dtype)
    results = []
    for each in (graph, loaded, loaded):  # twice: the mapped tensors are not written to
        leaves = [x.clone().requires_grad_() for x in (query, key, attn)]
        out = gatv2_attention(leaves[0], leaves[1], leaves[2], each)
        results.append((out, *torch.autograd.grad(out, leaves, cotangent)))
    for a, b, c in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    loaded.key_index.zero_()  # and what is written stays here
    assert_same(Graph.load(tmp_path / "graph"), graph)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("saved") / "graph"
    with_heads().save(path)
    return path


def header_length(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def digested(content: bytes, digest: bytes) -> bytes:
    """As one who changes a file on purpose: with the digest that the content has now."""
    before, _, after = content.partition(digest)
    fresh = sha256(before + 64 * b"0" + after).hexdigest().encode()
    return before + fresh + after


def digest_of(content: bytes) -> bytes:
    header = json.loads(content[8 : header_length(content)])
    return str(header["__metadata__"]["digest"]).encode()


def test_the_digest_is_that_of_the_file(saved: Path) -> None:
    content = saved.read_bytes()
    assert digested(content, digest_of(content)) == content


@given(data=st.data())
def test_any_changed_byte_is_an_error(saved: Path, data: st.DataObject) -> None:
    content = saved.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, header_length(content) - 1))
    assert_refused(saved, flipped(content, place, data.draw(st.integers(1, 255))))


def test_every_byte_of_the_header_counts(saved: Path) -> None:
    content = saved.read_bytes()
    for place in range(header_length(content)):
        is_letter = content[place : place + 1].isalpha()
        other_case, tab_for_space, next_sign = 0x20, 0x29, 0x01
        flip = other_case if is_letter else tab_for_space if content[place] == 0x20 else next_sign
        assert_refused(saved, flipped(content, place, flip))


def flipped(content: bytes, place: int, bits: int) -> bytes:
    return content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :]


@given(data=st.data())
def test_any_cut_is_an_error(saved: Path, data: st.DataObject) -> None:
    content = saved.read_bytes()
    start, length = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 99))
    assert_refused(saved, content[:start])
    assert_refused(saved, content[:start] + content[start + length :])
    assert_refused(saved, content + content[:length])


@given(content=st.binary(max_size=99))
def test_what_is_no_such_file_is_an_error(saved: Path, content: bytes) -> None:
    assert_refused(saved, content)
    assert_refused(saved, len(content).to_bytes(8, "little") + content)


def assert_refused(saved: Path, content: bytes) -> None:
    path = saved.with_name("changed")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"changed' can't be loaded: expected .*; got .*: \w+ it"):
        Graph.load(path)


def test_the_refusal_is_not_of_every_file(saved: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        assert_refused(saved, saved.read_bytes())


@given(data=st.data())
def test_with_a_new_digest_it_is_still_a_graph_or_an_error(
    saved: Path, data: st.DataObject
) -> None:
    content = saved.read_bytes()
    digest, end = digest_of(content), header_length(content)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, end - 1) | st.integers(end, len(content) - 1))
        value = data.draw(st.sampled_from(b'0123456789[],:"') | st.integers(0, 255))
        content = flipped(content, place, content[place] ^ value)
    path = saved.with_name("tampered")
    path.write_bytes(digested(content, digest))
    try:
        graph = Graph.load(path)
    except ValueError:
        return
    check_graph(graph)
    n_heads = 2 if graph.head_mask is None else graph.head_mask.shape[1]
    blocks = (graph.n_blocks,) if graph.n_blocks > 1 else ()
    query, key = (torch.randn(*blocks, n, n_heads, 3) for n in graph.block_shape)
    out = gatv2_attention(query, key.requires_grad_(), torch.randn(n_heads, 3), graph)
    out.backward(torch.randn_like(out))


# query 0 has keys 1, 2 and 2, query 2 has key 0
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a key past the end": (
        {"key_index": [1, 2, 3, 0]},
        r"`key_index` must lie in \[0, 3\); edge 2 has 3",
    ),
    "a negative key": (
        {"key_index": [-1, 2, 2, 0]},
        r"`key_index` must lie in \[0, 3\); edge 0 has -1",
    ),
    "fewer keys": ({"n_keys": 2}, r"`key_index` must lie in \[0, 2\)"),
    "negative keys": ({"n_keys": -1}, "there can't be -1 keys"),
    "more keys than an index can tell": (
        {"n_keys": 2**31},
        "there can't be 2147483648 keys in torch.int32",
    ),
    "unsorted keys": ({"key_index": [2, 1, 2, 0]}, "keys of a query must ascend"),
    "pointers from 1": (
        {"query_ptr": [1, 3, 3, 4]},
        "must go from 0 to 4, the edges; it goes from 1 to 4",
    ),
    "pointers too far": ({"query_ptr": [0, 3, 3, 5]}, "it goes from 0 to 5"),
    "descending pointers": ({"query_ptr": [0, 3, 2, 4]}, "`query_ptr` must ascend"),
    "pointers of other queries": (
        {"query_ptr": [0, 2, 2, 4]},
        "`query_index` must agree with `query_ptr`",
    ),
    "no pointers": ({"query_ptr": []}, r"`query_ptr` must be torch.int32 with shape \(1,\)"),
    "a query past the end": ({"query_index": [0, 0, 0, 3]}, r"`query_index` must lie in \[0, 3\)"),
    "another query": ({"query_index": [0, 0, 1, 2]}, "`query_index` must agree"),
    "an edge twice": ({"edge_id": [0, 1, 1, 3]}, "`edge_id` must have each number"),
    "an edge past the end": ({"edge_id": [0, 1, 2, 4]}, r"`edge_id` must lie in \[0, 4\)"),
    "too few edges": ({"edge_id": [0, 1, 2]}, r"`edge_id` must be torch.int32 with shape \(4,\)"),
    "a mask of too few edges": (
        {"head_mask": torch.ones(3, 2, dtype=torch.bool)},
        r"shape \(4, n_heads\)",
    ),
    "a mask of numbers": ({"head_mask": torch.ones(4, 2)}, "`head_mask` must be bool"),
    "a mask that is flat": (
        {"head_mask": torch.ones(4, dtype=torch.bool)},
        "`head_mask` must be bool",
    ),
    "floats": (
        {"key_index": torch.ones(4)},
        "indices must be int32 or int64; they are torch.float32",
    ),
    "two dtypes": ({"edge_id": torch.arange(4)}, "`edge_id` must be torch.int32"),
    "a matrix": (
        {"key_index": torch.zeros(2, 2).int()},
        r"`key_index` must be torch.int32 with shape \(4,\)",
    ),
    "a mask of other bytes": (
        {"head_mask": torch.full((4, 2), 2, dtype=torch.uint8).view(torch.bool)},
        "`head_mask` must be of bytes 0 and 1",
    ),
    "too few numbers": (
        {"key_id": torch.arange(2)},
        r"`key_id` must be torch.int64 with shape \(3,\)",
    ),
    "narrow numbers": ({"query_id": [0, 1, 2]}, "`query_id` must be torch.int64"),
    "blocks of parts": ({"n_blocks": 2}, "can't make 2 equal blocks"),
    "blocks that edges leave": ({"n_blocks": 3}, "an edge must join nodes of one block"),
    "negative blocks": ({"n_blocks": -3}, "can't make -3 equal blocks"),
}


@pytest.mark.parametrize(("changes", "error"), WRONG.values(), ids=WRONG)
def test_what_is_no_graph_is_an_error(
    changes: dict[str, Any], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph.from_edge_index(torch.tensor([[0, 0, 2, 0], [2, 1, 0, 2]]), n_nodes=3)
    as_tensors = {
        name: torch.tensor(value, dtype=torch.int32) if isinstance(value, list) else value
        for name, value in changes.items()
    }
    wrong = with_changes(graph, as_tensors)
    for chunk in (1 << 22, 2, 1):
        monkeypatch.setattr("gatv2.graph.check._CHUNK", chunk)
        check_graph(graph)
        with pytest.raises(ValueError, match=f"not a graph: .*{error}"):
            check_graph(wrong)
    wrong.save(tmp_path / "wrong")
    with pytest.raises(ValueError, match=f"wrong' holds no graph .*{error}.* save the graph again"):
        Graph.load(tmp_path / "wrong")


@given(data=st.data(), chunk=st.sampled_from([1, 2, 5, 1 << 22]))
def test_every_graph_that_we_make_is_one(data: st.DataObject, chunk: int) -> None:
    n, m, n_edges = (data.draw(st.integers(1, 9)) for _ in range(3))
    edge_index = torch.stack((torch.randint(n, (n_edges,)), torch.randint(m, (n_edges,))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatv2.graph.check._CHUNK", chunk)
        graph = Graph.from_edge_index(edge_index, (n, m))
        for each in (graph, graph.coalesce(), Graph.batch([graph, graph]), with_heads()):
            check_graph(each)


def test_fields_must_be_there_and_known(tmp_path: Path) -> None:
    path = tmp_path / "graph"
    random_graph().save(path)
    tensors, metadata = load_tensors(path, "graph")
    of_type = {name: value for name, value in tensors.items() if name != "edge_id"}
    for changed, numbers in (
        (of_type, metadata),
        (tensors | {"more": torch.ones(1)}, metadata),
        (tensors, metadata | {"more": "1"}),
        (tensors, metadata | {"n_keys": "many"}),
        (tensors, metadata | {"head_mask": "1"}),
        (of_type, metadata | {"edge_id": "1"}),
        (tensors | {"n_keys": torch.ones(1)}, {"kind": "graph"}),
    ):
        save_tensors(path, changed, numbers)
        with pytest.raises(
            ValueError, match=r"holds no graph that kernels can run on|can't be loaded"
        ):
            Graph.load(path)


@pytest.mark.parametrize("text", ["1_1", "\u0661\u0661", " 11", "011", "+11", "11.0", "1" * 5000])
def test_numbers_are_decimals(text: str, tmp_path: Path) -> None:
    path = tmp_path / "graph"
    random_graph().save(path)
    tensors, metadata = load_tensors(path, "graph")
    for name in ("n_keys", "n_blocks", "is_bipartite"):
        save_tensors(path, tensors, metadata | {name: text})
        with pytest.raises(ValueError, match="holds no graph that kernels can run on"):
            Graph.load(path)
    save_tensors(path, tensors, metadata | {"is_bipartite": "2"})
    with pytest.raises(ValueError, match="`is_bipartite` must be 0 or 1"):
        Graph.load(path)


def test_a_header_is_refused_before_it_is_read_on(tmp_path: Path) -> None:
    """What it costs to refuse a file is bounded, whatever its header says."""
    path = tmp_path / "graph"
    entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    long = "{" + ",".join(f'"{i}":{entry}' for i in range(100_000)) + "}"
    nested, few = "[" * 100_000, f'{{"odd":{entry}}}'
    for text, error in (
        (long, "expected a header of at most 1048576 bytes; got one of"),
        (nested, "expected a header in JSON; got "),
        ("[]", "expected a header of names; got none"),
        (few, r"expected tensors of the names \['edge_id', .*; got 1 others, as 'odd'"),
    ):
        path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
        tracemalloc.start()
        with pytest.raises(ValueError, match=error):
            Graph.load(path)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 1 << 22
    with pytest.raises(ValueError, match="must take at most 1048576 bytes"):
        save_tensors(path, {}, {"kind": "a", "text": "a" * (1 << 20)})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="expected a regular file; got a pipe"):
        Graph.load(tmp_path / "pipe")


def test_a_file_in_memory_may_be_cut(tmp_path: Path) -> None:
    graph, path = random_graph(1000, 10_000), tmp_path / "graph"
    graph.save(path)
    loaded = Graph.load(path, mmap=False)
    with path.open("r+b") as file:
        file.truncate(8)  # a mapped tensor would end the process here
    assert_same(loaded, graph)


def test_kind_and_version_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "counts"
    save_tensors(path, {"count": torch.arange(3)}, {"kind": "counts"})
    with pytest.raises(
        ValueError, match="expected the kind 'graph'; got 'counts': load it with what"
    ):
        Graph.load(path)
    monkeypatch.setattr("gatv2.tensor_file.VERSION", "2")
    with pytest.raises(
        ValueError, match="expected a file of gatv2, version 2; got version 1: load it"
    ):
        load_tensors(path, "counts")
    safetensors_torch.save_file({"count": torch.arange(3)}, path)
    with pytest.raises(ValueError, match="expected a file of gatv2, version 2; got version None"):
        load_tensors(path, "counts")


def test_metadata_have_a_kind_and_no_names_of_the_format(tmp_path: Path) -> None:
    for metadata in ({}, {"kind": "a", "digest": "b"}, {"kind": "a", "version": "b"}):
        with pytest.raises(ValueError, match='`metadata` must have a "kind"'):
            save_tensors(tmp_path / "file", {}, metadata)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_no_other_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Graph.load(tmp_path / "nowhere")
    with pytest.raises(IsADirectoryError):
        Graph.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        random_graph().save(tmp_path / "nowhere" / "graph")


@pytest.mark.parametrize("where", ["safetensors.torch.save_file", "os.fsync", "os.replace"])
def test_a_stopped_save_leaves_what_there_was(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, path = random_graph(), tmp_path / "graph"
    graph.save(path)

    def stop(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, stop)
        with pytest.raises(KeyboardInterrupt):
            random_graph().save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["graph"]
    assert_same(Graph.load(path), graph)


def test_a_file_is_as_readable_as_others(tmp_path: Path) -> None:
    random_graph().save(tmp_path / "graph")
    (tmp_path / "other").touch()
    assert (tmp_path / "graph").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_without_safetensors_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (random_graph().save, Graph.load):
        with pytest.raises(ImportError, match=r"pip install 'gatv2-layers\[files\]'"):
            call(tmp_path / "graph")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_loaded_graph_is_mapped(tmp_path: Path) -> None:
    graph = random_graph(1000, 300_000)
    graph.save(tmp_path / "graph")
    tensors, _ = load_tensors(tmp_path / "graph", "graph")
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in maps
        if line.endswith(str(tmp_path / "graph"))
    ]
    for tensor in tensors.values():
        assert any(start <= tensor.data_ptr() < end for start, end in mapped)
