"""Batches of graphs of many sizes, in Equinox or Flax
===================================================

Each node has to name the class of one of its neighbours: the one to which its heaviest edge leads.
The weights are edge features, so attention has to look at them. Batches are padded to one number of
nodes and one of edges, so the step of training is compiled once::

    python examples/jax_graphs.py --library equinox --seed 0
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

import gatv2.jax as gat
import gatv2.jax.equinox
import gatv2.jax.nnx

N_CLASSES, N_HIDDEN, N_HEADS = 5, 32, 4
N_GRAPHS, N_NODES, N_EDGES = 8, (4, 12), 4
"""Graphs of a batch; least and most nodes of a graph; edges of a node."""
LEARNING_RATE = 1e-2


class Batch(NamedTuple):
    """Graphs as one, with padding behind their nodes and edges."""

    graph: gat.Graph
    h: jax.Array
    """`[n_nodes, N_CLASSES]`, the class of each node."""
    weight: jax.Array
    """`[n_edges, 1]`, the edge features."""
    target: jax.Array
    """`[n_nodes]`, the class that a node has to name."""


Train = Callable[[Iterable[Batch], int], Iterator[tuple[float, float]]]
"""Loss and accuracy of each step of training on batches, given a seed."""


def draw_batches(seed: int, n_batches: int) -> Iterator[Batch]:
    """Batches of other graphs each, all of one size."""
    rng = np.random.default_rng(seed)
    most = N_GRAPHS * N_NODES[1]
    for _ in range(n_batches):
        graphs = []
        for n_nodes in rng.integers(*N_NODES, N_GRAPHS, endpoint=True):
            query = np.repeat(np.arange(n_nodes), N_EDGES)
            key = rng.integers(0, n_nodes, n_nodes * N_EDGES)
            graphs.append(gat.Graph.from_edge_index(np.stack((query, key)), n_nodes))
        graph = gat.Graph.batch(graphs).padded(most * N_EDGES, most)
        own, weight = rng.integers(0, N_CLASSES, most), rng.random((most, N_EDGES))
        key = np.asarray(graph.edge_index[1]).reshape(most, N_EDGES)
        heaviest = np.take_along_axis(key, weight.argmax(1)[:, None], axis=1)[:, 0]
        yield Batch(
            graph,
            jnp.asarray(np.eye(N_CLASSES, dtype=np.float32)[own]),
            jnp.asarray(weight.reshape(-1, 1), jnp.float32),
            jnp.asarray(np.append(own, 0)[heaviest]),  # that of padding is not read
        )


def score(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and accuracy over the nodes that are no padding."""
    is_node = batch.graph.query_mask
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.target)
    is_right = logits.argmax(-1) == batch.target
    return losses.mean(where=is_node), is_right.mean(where=is_node)


class EquinoxModel(eqx.Module):
    """A layer of attention and a linear classifier, in Equinox."""

    layer: gatv2.jax.equinox.GraphAttentionV2Layer
    classifier: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        of_layer, of_classifier = jax.random.split(key)
        self.layer = gatv2.jax.equinox.GraphAttentionV2Layer(
            N_CLASSES, N_HIDDEN, N_HEADS, dropout=0.0, edge_dim=1, key=of_layer
        )
        self.classifier = eqx.nn.Linear(N_HIDDEN, N_CLASSES, key=of_classifier)

    def __call__(self, batch: Batch) -> jax.Array:
        """Logits of each node, `[n_nodes, N_CLASSES]`."""
        hidden = self.layer(batch.h, batch.graph, edge_features=batch.weight)
        logits: jax.Array = jax.vmap(self.classifier)(hidden)
        return logits


def train_in_equinox(batches: Iterable[Batch], seed: int) -> Iterator[tuple[float, float]]:
    """Train an Equinox model with optax."""
    model, optimizer = EquinoxModel(jax.random.key(seed)), optax.adam(LEARNING_RATE)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model: EquinoxModel, state: Any, batch: Batch) -> Any:
        def loss_of(model: EquinoxModel) -> tuple[jax.Array, jax.Array]:
            return score(model(batch), batch)

        results, gradients = eqx.filter_value_and_grad(loss_of, has_aux=True)(model)
        updates, state = optimizer.update(gradients, state)
        return eqx.apply_updates(model, updates), state, results

    for batch in batches:
        model, state, (loss, accuracy) = step(model, state, batch)
        yield float(loss), float(accuracy)


class FlaxModel(nnx.Module):
    """A layer of attention and a linear classifier, in Flax NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layer = gatv2.jax.nnx.GraphAttentionV2Layer(
            N_CLASSES, N_HIDDEN, N_HEADS, dropout=0.0, edge_dim=1, rngs=rngs
        )
        self.classifier = nnx.Linear(N_HIDDEN, N_CLASSES, rngs=rngs)

    def __call__(self, batch: Batch) -> jax.Array:
        """Logits of each node, `[n_nodes, N_CLASSES]`."""
        hidden = self.layer(batch.h, batch.graph, edge_features=batch.weight)
        logits: jax.Array = self.classifier(hidden)
        return logits


def train_in_flax(batches: Iterable[Batch], seed: int) -> Iterator[tuple[float, float]]:
    """Train a Flax model with optax."""
    model = FlaxModel(nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, optax.adam(LEARNING_RATE), wrt=nnx.Param)

    @nnx.jit
    def step(model: FlaxModel, optimizer: Any, batch: Batch) -> Any:
        def loss_of(model: FlaxModel) -> tuple[jax.Array, jax.Array]:
            return score(model(batch), batch)

        results, gradients = nnx.value_and_grad(loss_of, has_aux=True)(model)
        optimizer.update(model, gradients)
        return results

    for batch in batches:
        loss, accuracy = step(model, optimizer, batch)
        yield float(loss), float(accuracy)


LIBRARIES: dict[str, Train] = {"equinox": train_in_equinox, "flax": train_in_flax}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", choices=tuple(LIBRARIES), default="equinox")
    parser.add_argument("--steps", type=int, default=300, help="of Adam (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps must be 1 or more; got {options.steps}")
    batches = draw_batches(options.seed, options.steps)
    training = LIBRARIES[options.library](batches, options.seed)
    steps = list(tqdm(training, options.library, options.steps, unit="step"))
    loss, accuracy = steps[-1]
    print(f"cross-entropy {loss:.3f}, accuracy {accuracy:.3f} on the last batch")


if __name__ == "__main__":
    main()
