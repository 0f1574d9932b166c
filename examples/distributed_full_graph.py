"""One graph on several processes
==============================

Full-graph training, where each process holds a part of the graph::

    torchrun --nproc-per-node 2 examples/distributed_full_graph.py
    torchrun --nproc-per-node 2 examples/distributed_full_graph.py --dataset cora --root DIR

Every process has its own nodes' features and its own queries' edges, and fetches the key rows of
other processes that these edges need (`gatv2.distributed.Partition`). `DistributedDataParallel`
averages the gradients of the parameters. A run that was stopped goes on from its last checkpoint in
`--output`, with any number of processes and with the same losses. Without torchrun it is one
process.

The synthetic graph is the dictionary lookup on a million nodes. A node attends to ten others, one
of each attribute, and asks for the value of the one with the attribute that it looks for. The
answer is there, so perfect is 100 %. Attention that ranks keys alike for all queries cannot find
it.
"""

import argparse
import datetime
import os
import resource
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from checkpoints import Checkpoints
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.functional import cross_entropy, elu, one_hot
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from gatv2 import GraphAttentionV2Layer
from gatv2.distributed import Partition
from gatv2.random import philox_4x32_10

N_ATTRIBUTES = N_VALUES = 10
SPLITS = ("training", "validation", "test")
COLUMNS = ("loss", "validation_loss", "validation_accuracy", "test_accuracy")


@dataclass
class Part:
    """What one process holds of a problem: the rows of its own nodes."""

    partition: Partition
    h: Tensor
    """`[n_own, n_features]`."""
    label: Tensor
    """`[n_own]`, int64."""
    split: Tensor
    """`[n_own]`, int64: the node is used for `SPLITS[i]`; -1 for none of them."""


class Network(nn.Module):
    """Attention layers over a part of a graph, and a classifier; any split gives the same."""

    def __init__(
        self, layers: Iterable[nn.Module], classifier: nn.Module, feature_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.classifier = classifier
        self.feature_dropout = feature_dropout

    def forward(self, h: Tensor, partition: Partition) -> Tensor:
        """Logits of own nodes, `[n_own, n_classes]`."""
        for i, layer in enumerate(self.layers):
            h = layer(self._drop(elu(h) if i else h, partition), partition)
        logits: Tensor = self.classifier(h)
        return logits

    def _drop(self, h: Tensor, partition: Partition) -> Tensor:
        if not (self.training and self.feature_dropout):
            return h
        # all processes draw for all nodes and take their own rows: generators stay alike
        kept = torch.rand(partition.n_nodes, h.shape[1])[partition.own] >= self.feature_dropout
        return h * kept / (1 - self.feature_dropout)


def cora(root: str) -> tuple[Part, Network]:
    """The data set and the network of `planetoid.py`."""
    from planetoid import as_graph, build, load

    if dist.get_rank() == 0:  # the others find what it downloads and writes
        load(root)
    dist.barrier()
    data = load(root)
    partition = Partition.from_graph(as_graph(data))
    split = torch.full((data.num_nodes,), -1)
    for i, mask in enumerate((data.train_mask, data.val_mask, data.test_mask)):
        split[mask] = i
    own = partition.own
    part = Part(partition, data.x[own].to(torch.get_default_dtype()), data.y[own], split[own])
    network = build(data.num_features, int(data.y.max()) + 1)
    return part, Network(network.layers, nn.Identity(), network.feature_dropout)


def synthetic(n_nodes: int, seed: int) -> tuple[Part, Network]:
    """A dictionary lookup in one big graph; each process makes its own nodes and edges, no more.

    All is a function of the seed and a node's number: node j has attribute j % 10.
    """
    rank, n_parts = dist.get_rank(), dist.get_world_size()
    bounds = [n_nodes * r // n_parts for r in range(n_parts + 1)]
    node = torch.arange(bounds[rank], bounds[rank + 1])
    value, wanted, split, _ = _random_words(node, 0, seed)
    wanted = wanted % N_ATTRIBUTES
    drawn = torch.stack([word for i in (1, 2, 3) for word in _random_words(node, i, seed)], dim=1)
    per_attribute = n_nodes // N_ATTRIBUTES
    attribute = torch.arange(N_ATTRIBUTES)
    key = drawn[:, :N_ATTRIBUTES] % per_attribute * N_ATTRIBUTES + attribute
    answer, *_ = _random_words(key[torch.arange(len(node)), wanted], 0, seed)
    features = [
        one_hot(wanted, N_ATTRIBUTES),
        one_hot(node % N_ATTRIBUTES, N_ATTRIBUTES),
        one_hot(value % N_VALUES, N_VALUES),
    ]
    edge_index = torch.stack((node.repeat_interleave(N_ATTRIBUTES), key.flatten()))
    part = Part(
        Partition.from_edge_index(edge_index, bounds),
        torch.cat(features, dim=1).to(torch.get_default_dtype()),
        answer % N_VALUES,
        torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 1, 2])[split % 10],
    )
    layer = GraphAttentionV2Layer(part.h.shape[1], 32, n_heads=4, dropout=0.0, bias=True)
    return part, Network([layer], nn.Linear(32, N_VALUES))


def _random_words(node: Tensor, stream: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words for each node, the same in every process that asks for them."""
    zero = torch.zeros_like(node)
    return philox_4x32_10((node, zero + stream, zero, zero), (zero + seed, zero))


class Run:
    """Training from one epoch to the next, and its state, which a checkpoint holds."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, part: Part) -> None:
        self.network, self.optimizer, self.part = network, optimizer, part
        self.n_nodes = total(torch.stack([(part.split == i).sum() for i in range(len(SPLITS))]))
        """Of each split, in all processes."""
        self.history: list[tuple[float, ...]] = []
        """The `COLUMNS` of each epoch so far."""

    def state_dict(self) -> dict[str, Any]:
        """As `torch.distributed.checkpoint` asks for it."""
        network, optimizer = get_state_dict(self.network, self.optimizer)
        return {
            "network": network,
            "optimizer": optimizer,
            "random": torch.get_rng_state(),  # alike in all processes
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `torch.distributed.checkpoint` asks for it."""
        set_state_dict(
            self.network,
            self.optimizer,
            model_state_dict=state["network"],
            optim_state_dict=state["optimizer"],
        )
        torch.set_rng_state(state["random"])
        self.history = state["history"]

    def epoch(self) -> None:
        """A step on the whole graph, and the losses and accuracies of all processes together."""
        part = self.part
        self.network.train()
        loss = loss_sum(self.network(part.h, part.partition), part, "training")
        self.optimizer.zero_grad()
        # gradients are averaged over processes, and are to be those of the mean over all nodes
        (loss * dist.get_world_size() / self.n_nodes[0]).backward()
        self.optimizer.step()
        self.network.eval()
        with torch.no_grad():
            logits = self.network(part.h, part.partition)
        hits = logits.argmax(dim=1) == part.label
        sums = [loss.detach(), loss_sum(logits, part, "validation")]
        sums += [(hits & (part.split == i)).sum() for i in (1, 2)]
        means = total(torch.stack([x.double() for x in sums])) / self.n_nodes[[0, 1, 1, 2]]
        self.history.append(tuple(means.tolist()))

    def best(self) -> tuple[float, ...]:
        """The epoch of the best validation accuracy, with the least validation loss among equals."""
        return max(self.history, key=lambda line: (line[2], -line[1]))


def loss_sum(logits: Tensor, part: Part, split: str) -> Tensor:
    """The cross-entropy of own nodes of a split, summed."""
    chosen = part.split == SPLITS.index(split)
    return cross_entropy(logits[chosen], part.label[chosen], reduction="sum")


def total(own: Tensor) -> Tensor:
    """The sum over all processes, float64."""
    summed = own.double()
    dist.all_reduce(summed)
    return summed


def gather_by_rank(value: object) -> list[Any]:
    """A value of each process, in all of them."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def processes(timeout: float) -> Iterator[None]:
    """Join torchrun's processes; without torchrun, be alone.

    An error in one process ends all of them. The group's destructor waits for gloo's threads, which
    may wait for the GIL, and only `destroy_process_group` lets go of it meanwhile. So
    `DistributedDataParallel`, which holds the group, has to be gone by then, and after an error
    nothing is destroyed.
    """
    options: dict[str, Any] = {"timeout": datetime.timedelta(seconds=timeout)}
    if "RANK" not in os.environ:
        alone: Any = dist.HashStore()  # type: ignore[attr-defined]
        options |= {"store": alone, "rank": 0, "world_size": 1}
    dist.init_process_group("gloo", **options)
    try:
        yield
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    dist.barrier()
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> float:
    """Train; returns the test accuracy at the epoch of the best validation accuracy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="synthetic", choices=("cora", "synthetic"))
    parser.add_argument("--root", help="folder of Cora, as for planetoid.py")
    parser.add_argument("--nodes", type=int, default=1_000_000, help="of the synthetic graph")
    parser.add_argument("--epochs", type=int, help="(default: 60, Cora 300)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument(
        "--output", type=Path, help="folder of checkpoints (default: none are made)"
    )
    parser.add_argument("--save-every", type=int, default=10, help="epochs (default: 10)")
    parser.add_argument(
        "--timeout", type=float, default=300, help="seconds to wait for a process (default: 300)"
    )
    options = parser.parse_args(arguments)
    if options.dataset == "cora" and options.root is None:
        parser.error("--dataset cora needs --root")
    for name, least in {"nodes": N_ATTRIBUTES, "epochs": 1, "save_every": 1}.items():
        number = getattr(options, name)
        if number is not None and number < least:
            parser.error(f"--{name.replace('_', '-')} must be {least} or more; got {number}")

    torch.set_default_dtype(getattr(torch, options.dtype))
    torch.manual_seed(options.seed)
    with processes(options.timeout):
        return train(options)


def train(options: argparse.Namespace) -> float:
    """Make this process's part, train, and let the first process report."""
    is_cora, output = options.dataset == "cora", options.output
    part, network = cora(options.root) if is_cora else synthetic(options.nodes, options.seed)
    rate, decay = (0.005, 5e-4) if is_cora else (0.03, 0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate, weight_decay=decay)
    run = Run(DistributedDataParallel(network), optimizer, part)
    checkpoints = None
    if output is not None:
        problem = {name: getattr(options, name) for name in ("dataset", "nodes", "seed", "dtype")}
        checkpoints = Checkpoints(output, problem)
        checkpoints.restore(run)

    n_epochs, done = options.epochs or (300 if is_cora else 60), len(run.history)
    is_first = dist.get_rank() == 0
    show: Callable[[str], None] = tqdm.write if is_first else lambda line: None
    for line in gather_by_rank(str(part.partition)):
        show(line)
    if done:
        show(f"goes on after epoch {done}")
    progress = tqdm(
        range(done, n_epochs), initial=done, total=n_epochs, unit="epoch", disable=not is_first
    )
    for epoch in progress:
        run.epoch()
        progress.set_postfix(zip(COLUMNS, (f"{x:.4f}" for x in run.history[-1]), strict=True))
        if checkpoints is not None and (epoch + 1) % options.save_every == 0:
            checkpoints.save(run, epoch + 1)
    if output is not None and is_first:
        lines = (COLUMNS, *run.history)
        text = "".join(",".join(map(str, line)) + "\n" for line in lines)
        (output / "curve.csv").write_text(text)
    peaks = gather_by_rank(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    show(f"peak memory of each process: {', '.join(f'{peak:.2f} GiB' for peak in peaks)}")
    *_, accuracy = run.best()
    show(f"{options.dataset}, {len(run.history)} epochs: test accuracy {accuracy:.2%}")
    return accuracy


if __name__ == "__main__":
    main()
