"""The dictionary-lookup problem: what GATv2 can learn and GAT, with one head, provably cannot.

A complete bipartite graph of 2k nodes. Key node j carries an attribute and a value, query node i
carries an attribute only, and is to predict the value of the key node that has its attribute: it
must tell that key from all others, so each query needs a ranking of the keys of its own. The values
are a permutation, another one in each instance:

    query nodes 0..k-1:     (attribute i, no value)         attends to every key node
    key nodes   k..2k-1:    (attribute j, values[j])        label of query i: values[i]

A query may attend to its key and to no other, or just as well to all others and not to its key: the
sum over all keys is the same in every instance. Both are learned, depending on the seed.

Training instances avoid a held-out set of pairs: with every fourth attribute one value, by default.
About 78 % of all instances are free of them, close to the paper's 80 %. Test accuracy counts the queries
whose pair is held out, that is, pairs of attribute and value never seen together in training.

Source: Brody, Alon, Yahav, "How Attentive are Graph Attention Networks?", ICLR 2022,
arXiv:2105.14491, section 4.1. As in its code: width 128, embeddings of attribute and value added, one
layer with shared weights, a classifier without bias, Adam, gradients clipped to norm 1, at most
32,000 instances. Different: its test counts all queries of an instance that has a held-out pair,
ours the queries of held-out pairs only; and there is no ReLU after the embeddings, which would
entangle attribute and value, so that what is learned from one pair carries over to another slowly.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor, nn

from gatv2.layer import GraphAttention, GraphAttentionV2Layer
from gatv2.options import as_int, check_sizes


@dataclass(frozen=True)
class DictionaryLookup:
    """Instances of the problem, all on one graph; an instance is the permutation of its values.

    Attributes:
        held_out: `[k]`, int64: the value that training never shows with each attribute, or -1.
        train: `[n_train, k]`, int64: `train[b, j]` is the value of key j in instance b.
        test: `[n_test, k]`, int64: instances with one held-out pair or more.
    """

    held_out: Tensor
    train: Tensor
    test: Tensor

    @classmethod
    def generate(
        cls,
        k: int,
        *,
        n_held_out: int | None = None,
        n_instances: int = 32_000,
        seed: int = 0,
    ) -> "DictionaryLookup":
        """Draw instances and the held-out pairs, and split by them.

        Args:
            k: number of keys, and of queries.
            n_held_out: number of held-out pairs, each of another attribute and value; a quarter of `k`,
                and one at least, if None.
            n_instances: how many permutations are drawn, for training and test together: about
                78 % go to training (37 % if `k` pairs are held out). If there are no more than this, all
                of them are taken.
            seed: the same seed gives the same instances.

        Raises:
            TypeError: a number is not an int.
            ValueError: `k` is less than 2, `n_held_out` is not from 1 to `k`, or `n_instances` is not
                positive.

        Example:
            >>> data = DictionaryLookup.generate(k=4)
            >>> data.train.shape, data.test.shape
            (torch.Size([18, 4]), torch.Size([6, 4]))
            >>> (data.train == data.held_out).any()
            tensor(False)
        """
        check_sizes(n_instances=n_instances)
        if as_int(k, "k") < 2:
            raise ValueError(f"`k` must be at least 2, for there to be a choice; got {k}")
        generator = torch.Generator().manual_seed(seed)
        n_held_out = max(k // 4, 1) if n_held_out is None else n_held_out
        if not 1 <= as_int(n_held_out, "n_held_out") <= k:
            raise ValueError(f"`n_held_out` must lie in [1, k={k}]; got {n_held_out}")
        held_out = torch.full((k,), -1)
        attributes = torch.randperm(k, generator=generator)[:n_held_out]
        held_out[attributes] = torch.randperm(k, generator=generator)[:n_held_out]
        if math.factorial(k) <= n_instances:
            instances = torch.tensor(list(permutations(range(k))))
        else:
            instances = torch.rand(n_instances, k, generator=generator).argsort(dim=1)
        has_held_out = (instances == held_out).any(dim=1)
        return cls(held_out, instances[~has_held_out], instances[has_held_out])

    @property
    def k(self) -> int:
        """Number of keys, and of queries."""
        return len(self.held_out)

    def is_unseen(self, values: Tensor) -> Tensor:
        """Which queries ask for a held-out pair: `[*B, k]` bool for values `[*B, k]`."""
        return values == self.held_out


def lookup_graph(k: int) -> Tensor:
    """The edge index `[2, k * k]` of the problem: each query node attends to every key node.

    Edges are ordered by (query, key), so `[k * k, n_heads]` attention reads as `[k, k, n_heads]`.

    Example:
        >>> lookup_graph(2)
        tensor([[0, 0, 1, 1],
                [2, 3, 2, 3]])
    """
    nodes = torch.arange(k)
    return torch.stack((nodes.repeat_interleave(k), nodes.repeat(k) + k))


class DictionaryLookupModel(nn.Module):
    """Embeddings of attribute and value, one attention layer, a linear classifier.

    Args:
        k: number of keys, and of queries.
        layer: the class of the attention layer.
        n_heads: its number of heads.
        width: of the embeddings, and of the heads together.

    Example:
        >>> model = DictionaryLookupModel(k=5, n_heads=8)
        >>> model(torch.stack((torch.arange(5), torch.randperm(5)))).shape
        torch.Size([2, 5, 5])
    """

    def __init__(
        self,
        k: int,
        layer: type[GraphAttention] = GraphAttentionV2Layer,
        n_heads: int = 1,
        width: int = 128,
    ) -> None:
        super().__init__()
        self.register_buffer("edge_index", lookup_graph(k), persistent=False)
        self.attribute = nn.Embedding(k, width)
        self.value = nn.Embedding(k + 1, width)  # the last one stands for "no value"
        for embedding in (self.attribute, self.value):
            nn.init.normal_(embedding.weight, std=0.3)  # with 1, attention starts too peaked
        self.layer = layer(width, width, n_heads, dropout=0.0, share_weights=True)
        self.classifier = nn.Linear(width, k, bias=False)

    def features(self, values: Tensor) -> Tensor:
        """Features of the nodes, queries first: `[*B, 2k, width]` for values `[*B, k]`."""
        k = values.shape[-1]
        attributes = self.attribute(torch.arange(k, device=values.device).repeat(2))
        no_value = torch.full_like(values, k)
        features: Tensor = attributes + self.value(torch.cat((no_value, values), dim=-1))
        return features

    def forward(self, values: Tensor) -> Tensor:
        """Logits `[*B, k queries, k values]` for the values of the keys, `[*B, k]`."""
        out = self.layer(self.features(values), self.edge_index)
        logits: Tensor = self.classifier(out[..., : values.shape[-1], :])
        return logits


@dataclass(frozen=True)
class Epoch:
    """What an epoch of training came to.

    Attributes:
        number: 1 for the first epoch.
        loss: mean cross-entropy over the epoch.
        train_accuracy: share of the queries of training instances answered, while training.
        test_accuracy: share of the queries of held-out pairs answered, after the epoch.
    """

    number: int
    loss: float
    train_accuracy: float
    test_accuracy: float


def train(
    model: nn.Module,
    data: DictionaryLookup,
    *,
    n_epochs: int = 10,
    batch_size: int = 32,
    lr: float = 3e-3,
    seed: int = 0,
) -> Iterator[Epoch]:
    """Train a model, an epoch for each item taken: put a progress bar around it, stop when solved.

    Args:
        model: maps values `[B, k]` to logits `[B, k, k]`.
        data: the instances.
        n_epochs: at most so many epochs.
        batch_size: instances a step.
        lr: learning rate of Adam.
        seed: of the order of the instances.

    Yields:
        The epoch's loss and accuracies.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model, data = DictionaryLookupModel(k=3), DictionaryLookup.generate(k=3)
        >>> [epoch.number for epoch in train(model, data, n_epochs=2)]
        [1, 2]
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for number in range(1, n_epochs + 1):
        model.train()
        loss_sum = n_correct = 0.0
        order = torch.randperm(len(data.train), generator=generator)
        for batch in order.split(batch_size):
            values = data.train[batch]
            logits = model(values)
            loss = nn.functional.cross_entropy(logits.flatten(0, -2), values.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss_sum += loss.item() * len(batch)
            n_correct += (logits.argmax(dim=-1) == values).sum().item()
        yield Epoch(
            number,
            loss_sum / len(data.train),
            n_correct / data.train.numel(),
            accuracy(model, data.test, data.is_unseen(data.test)),
        )


@torch.no_grad()
def accuracy(
    model: nn.Module, instances: Tensor, counted: Tensor | None = None, *, batch_size: int = 1024
) -> float:
    """Share of the queries answered, in evaluation mode.

    Args:
        model: maps values `[B, k]` to logits `[B, k, k]`.
        instances: `[n, k]`.
        counted: `[n, k]` bool, which queries count; all if None.
        batch_size: instances at a time.
    """
    model.eval()
    hits = torch.cat(
        [model(values).argmax(dim=-1) == values for values in instances.split(batch_size)]
    )
    return (hits if counted is None else hits[counted]).float().mean().item()
