"""Processes that would exchange different things all raise, name the difference, and can go on."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch import Tensor

from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.distributed import Partition, agreement, gatv2_attention
from gatv2.distributed.call import _is_close, _sketch

N_PROCESSES, ODD = 3, 1


def graph_of(seed: int) -> Graph:
    """A graph whose nodes have as many edges whatever the seed is."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.arange(12).repeat_interleave(5)
    return Graph.from_edge_index(
        torch.stack((query, torch.randint(12, (60,), generator=generator))), 12
    )


def new_layer(**options: Any) -> GraphAttentionV2Layer:
    torch.manual_seed(1)
    return GraphAttentionV2Layer(3, options.pop("out_features", 4), 2, **options)


def differences(rank: int) -> dict[str, tuple[str, str]]:
    """What this process says to calls in which the process ODD does something else."""
    is_odd = rank == ODD
    partition = Partition.from_graph(graph_of(0))
    other_partition = Partition.from_graph(graph_of(2))
    h = torch.randn(partition.n_own, 3)
    layer, second = new_layer(dropout=0.5), GraphAttentionV2Layer(3, 4, 2, dropout=0.5)
    edge_features = torch.randn(partition.n_edges, 2)

    def call(layer: GraphAttentionV2Layer = layer, h: Tensor = h, **options: Any) -> Tensor:
        out: Tensor = layer(h, options.pop("partition", partition), **options)
        return out

    def in_autocast(is_on: bool, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        with torch.autocast("cpu", dtype) if is_on else nullcontext():
            return call()

    def without_gradients() -> Tensor:
        with torch.no_grad() if is_odd else nullcontext():
            return call()

    def in_another_order() -> None:
        for each in (second, layer) if is_odd else (layer, second):
            call(each, seed=3)

    def a_second_forward() -> None:
        out = call()
        if is_odd:
            call()
        out.sum().backward()

    def another_backward() -> None:
        first, last = call(), call()
        (first if is_odd else last).sum().backward()

    def frozen() -> Tensor:
        return call(new_layer(dropout=0.5).requires_grad_(not is_odd))

    def half(dtype: torch.dtype) -> Tensor:
        return call(new_layer(dropout=0.5, dtype=dtype), h.to(dtype))

    rows = torch.stack((torch.arange(4) + 4 * rank, torch.arange(4)))
    calls: dict[str, Callable[[], object]] = {
        "dtypes": lambda: half(torch.float16 if is_odd else torch.bfloat16),
        "widths": lambda: call(new_layer(dropout=0.5, out_features=6 if is_odd else 4)),
        "batches": lambda: call(h=h.expand(2, *h.shape) if is_odd else h),
        "slopes": lambda: call(
            new_layer(dropout=0.5, leaky_relu_negative_slope=0.3 if is_odd else 0.2)
        ),
        "dropout": lambda: call(new_layer(dropout=0.4 if is_odd else 0.5)),
        "evaluation": lambda: call(new_layer(dropout=0.5).train(not is_odd)),
        "no_grad": without_gradients,
        "frozen": frozen,
        "a seed": lambda: call(seed=3 if is_odd else None),
        "seeds": lambda: call(seed=2**62 + is_odd),
        "kernels": lambda: call(new_layer(dropout=0.5, kernel="torch" if is_odd else "auto")),
        "autocast": lambda: in_autocast(is_odd),
        "dtypes of autocast": lambda: in_autocast(
            True, torch.float16 if is_odd else torch.bfloat16
        ),
        "splits": lambda: call(partition=other_partition if is_odd else partition),
        "self-loops": lambda: call(new_layer(dropout=0.5, add_self_loops=is_odd)),
        "features of edges": lambda: call(
            new_layer(dropout=0.5, edge_dim=2 if is_odd else None),
            edge_features=edge_features if is_odd else None,
        ),
        "a bias": lambda: call(score_bias=edge_features[:, :1] if is_odd else None),
        "heads of a bias": lambda: call(score_bias=edge_features[:, : 2 if is_odd else 1]),
        "parameters": lambda: call(second if is_odd else layer),
        "another order": in_another_order,
        "a second forward": a_second_forward,
        "another backward": another_backward,
        "no backward": lambda: call() if is_odd else call().sum().backward(),
        "refused features": lambda: call(h=h[:, :2] if is_odd else h),
        "refused rows": lambda: call(h=h[1:] if is_odd else h),
        "a refused pair": lambda: gatv2_attention(
            *(torch.randn(partition.n_own, 2, 2), torch.randn(partition.n_own, 2, 2)),
            *(torch.randn(2, 2), partition),
            edge_features=edge_features if is_odd else None,
        ),
        "a partition": lambda: Partition.from_graph(graph_of(0)) if is_odd else call(),
        "keys": lambda: Partition.from_graph(graph_of(2 if is_odd else 0)),
        "order of edges": lambda: Partition.from_graph(
            Graph.from_edge_index(graph_of(0).edge_index.flip(1 if is_odd else ()), 12)
        ),
        "flows": lambda: Partition.from_edge_index(
            rows.flip(0) if is_odd else rows,
            (0, 4, 8, 12),
            flow="source_to_target" if is_odd else "target_to_source",
        ),
    }
    messages = {}
    for name, each in calls.items():
        try:
            each()
            messages[name] = ("", "")
            if name == "no backward" and is_odd:
                call()  # the next layer
        except Exception as error:
            messages[name] = (type(error).__name__, str(error))
    expected = layer.eval()(h, partition)  # nobody was left behind
    assert torch.equal(call(), expected)
    return messages


SAME = "attention must be the same in all processes, but "
DIFFERENT = "the processes of the group do different things: "
FAILED = "another process of the group failed: rank 1: "
EXPECTED: dict[str, tuple[str, str]] = {
    "dtypes": ("ValueError", f"{SAME}`dtype` is torch.bfloat16 on ranks 0, 2, and torch.float16"),
    "widths": ("ValueError", f"{SAME}`n_hidden` is 2 on ranks 0, 2, and 3 on rank 1"),
    "batches": ("ValueError", f"{SAME}`batch` is () on ranks 0, 2, and (2,) on rank 1"),
    "slopes": ("ValueError", f"{SAME}`negative_slope` is 0.2 on ranks 0, 2, and 0.3 on rank 1"),
    "dropout": ("ValueError", f"{SAME}`dropout` is 0.5 on ranks 0, 2, and 0.4 on rank 1"),
    "evaluation": ("ValueError", f"{SAME}`dropout` is 0.5 on ranks 0, 2, and 0.0 on rank 1"),
    "no_grad": ("ValueError", f"{SAME}`gradients` is True on ranks 0, 2, and False on rank 1"),
    "frozen": ("ValueError", f"{SAME}`gradients` is True on ranks 0, 2, and False on rank 1"),
    "a seed": ("ValueError", f"{SAME}`seed` is drawn on ranks 0, 2, and given on rank 1"),
    "seeds": (
        "ValueError",
        f"`seed` must be the same in all processes, but it is {2**62} on ranks",
    ),
    "kernels": ("ValueError", f"{SAME}`kernel` is auto on ranks 0, 2, and torch on rank 1"),
    "autocast": ("ValueError", "`autocast` is None on ranks 0, 2, and torch.bfloat16 on rank 1"),
    "dtypes of autocast": (
        "ValueError",
        "and torch.float16 on rank 1; `autocast` is torch.bfloat16",
    ),
    "splits": ("ValueError", f"{SAME}`graph` is "),
    "self-loops": ("ValueError", f"{SAME}`graph` is "),
    "features of edges": ("ValueError", f"{SAME}`edge_dim` is None on ranks 0, 2, and 2 on rank 1"),
    "a bias": ("ValueError", f"{SAME}`bias_heads` is None on ranks 0, 2, and 1 on rank 1"),
    "heads of a bias": ("ValueError", f"{SAME}`bias_heads` is 1 on ranks 0, 2, and 2 on rank 1"),
    "parameters": ("ValueError", "`attn` must be the same in all processes, but that of rank 1"),
    "another order": ("ValueError", "call the same layers in the same order in all processes"),
    "a second forward": (
        "RuntimeError",
        f"{DIFFERENT}gradients of rows on ranks 0, 2, and attention on rank 1: call the same layers",
    ),
    "another backward": ("RuntimeError", "have gradients of rows of different calls"),
    "no backward": (
        "RuntimeError",
        f"{DIFFERENT}gradients of rows on ranks 0, 2, and attention on rank 1",
    ),
    "refused features": (
        "RuntimeError",
        f"{FAILED}ValueError: `h` must have shape (*batch, n_nodes, in_features=3); got (4, 2)",
    ),
    "refused rows": (
        "RuntimeError",
        f"{FAILED}ValueError: `query` must have a row for each of the",
    ),
    "a refused pair": ("RuntimeError", f"{FAILED}ValueError: "),
    "a partition": ("RuntimeError", f"{DIFFERENT}attention on ranks 0, 2, and a partition is made"),
    "keys": ("ValueError", "the processes split different graphs; rank 0: "),
    "order of edges": ("ValueError", "the processes split different graphs; rank 0: "),
    "flows": (
        "ValueError",
        "flow='target_to_source'; rank 1: bounds=(0, 4, 8, 12), flow='source_to",
    ),
}


@pytest.mark.skipif(not dist.is_gloo_available(), reason="PyTorch was built without gloo")
def test_what_differs_is_named_in_every_process(tmp_path: Path) -> None:
    of_ranks = run_processes(differences, N_PROCESSES, tmp_path)
    for rank, messages in of_ranks.items():
        assert messages.keys() == EXPECTED.keys()
        for name, (kind, text) in messages.items():
            expected_kind, expected = EXPECTED[name]
            if rank == ODD and "refused" in name:
                own = expected.removeprefix(f"{FAILED}ValueError: ")
                assert (kind, text.startswith(own)) == ("ValueError", True), (name, kind, text)
            else:
                assert (kind, expected in text) == (expected_kind, True), (name, rank, kind, text)


def test_parameters_are_told_apart_but_for_rounding(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    eps = torch.finfo(dtype).eps
    for shape in ((1, 2), (4, 8), (8, 64)):
        attn = torch.randn(200, *shape, generator=generator, dtype=dtype)
        first, *others = map(_sketch, attn)
        rounded = _sketch(attn[0] * (1 + 2 * eps))
        assert _is_close(rounded, first, eps**0.5)
        assert not any(_is_close(other, first, eps**0.5) for other in others)


def test_ranks_are_named() -> None:
    assert agreement.by_ranks(["a", "b", "b"]) == "a on rank 0, and b on ranks 1, 2"
