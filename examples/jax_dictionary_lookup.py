"""One model in PyTorch and in JAX
===============================

The dictionary lookup is trained in both, from the same parameters and on the same batches: by
`torch.optim.Adam` and by `optax.adam`. The picture has both curves of the loss, and their
difference. In float32 training enlarges the last bits. In float64 there is nothing else to see. At
the end the JAX parameters go back into the PyTorch model, which then answers the test::

    python examples/jax_dictionary_lookup.py --k 10
"""

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import optax
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn
from tqdm import tqdm

import gatv2.jax as gat
from gatv2.dictionary_lookup import DictionaryLookup, DictionaryLookupModel, accuracy, lookup_graph

BATCH_SIZE = 128
LEARNING_RATE = 1e-3

Losses = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """The loss of every step in one precision."""

    precision: str
    in_torch: Losses
    in_jax: Losses

    @property
    def difference(self) -> Losses:
        """How far the two are from each other, step by step."""
        return np.abs(self.in_jax - self.in_torch)


def run(output: Path, *, k: int = 10, n_steps: int = 300, seed: int = 0) -> list[Curves]:
    """Train both in both precisions, print how far they are apart, and draw the losses."""
    data = DictionaryLookup.generate(k, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    batches = [
        data.train[torch.randint(len(data.train), (BATCH_SIZE,), generator=generator)]
        for _ in range(n_steps)
    ]
    results = []
    for dtype, precision in ((torch.float32, "float32"), (torch.float64, "float64")):
        torch.manual_seed(seed)
        model = DictionaryLookupModel(k).to(dtype)
        back = copy.deepcopy(model)
        with jax.enable_x64(dtype == torch.float64):
            params, in_jax = train_in_jax(gat.from_torch(model), batches)
            gat.to_torch(params, back)
        curves = Curves(precision, train_in_torch(model, batches), in_jax)
        results.append(curves)
        print(
            f"{precision}: loss after {n_steps} steps {curves.in_torch[-1]:.6f} (PyTorch), "
            f"{curves.in_jax[-1]:.6f} (JAX), largest difference {curves.difference.max():.1e}"
        )
        unseen = [accuracy(m, data.test, data.is_unseen(data.test)) for m in (model, back)]
        print(f"         unseen pairs answered: {unseen[0]:.1%} (PyTorch), {unseen[1]:.1%} (JAX)")
    draw(results, output / "jax_dictionary_lookup.png")
    return results


def train_in_torch(model: nn.Module, batches: Sequence[Tensor]) -> Losses:
    """Train the PyTorch model in place; the loss of every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for values in tqdm(batches, "PyTorch", unit="step", leave=False):
        loss = nn.functional.cross_entropy(model(values).flatten(0, -2), values.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def train_in_jax(params: gat.Params, batches: Sequence[Tensor]) -> tuple[gat.Params, Losses]:
    """Train parameters as `gatv2.jax.from_torch` gives them; the loss of every step."""
    k = batches[0].shape[1]
    graph = gat.Graph.from_edge_index(lookup_graph(k).numpy(), 2 * k)
    optimizer = optax.adam(LEARNING_RATE)

    @jax.jit
    def step(
        params: gat.Params, state: Any, values: jax.Array
    ) -> tuple[gat.Params, Any, jax.Array]:
        def loss_of(params: gat.Params) -> jax.Array:
            logits = predict(params, values, graph)
            losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, values)
            return losses.mean()

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for values in tqdm(batches, "JAX", unit="step", leave=False):
        params, state, loss = step(params, state, jnp.asarray(values.int().numpy()))
        losses.append(float(loss))
    return params, np.array(losses)


def predict(params: gat.Params, values: jax.Array, graph: gat.Graph) -> jax.Array:
    """`gatv2.dictionary_lookup.DictionaryLookupModel`: logits `[*B, k, k]` for values `[*B, k]`."""
    k = values.shape[-1]
    with_queries = jnp.concatenate((jnp.full_like(values, k), values), axis=-1)
    h = params["attribute.weight"][jnp.arange(2 * k) % k] + params["value.weight"][with_queries]
    layer = {name: params[f"layer.{name}"] for name in ("attn", "linear_l.weight")}
    config = gat.Config(h.shape[-1], h.shape[-1], n_heads=1, dropout=0.0, share_weights=True)
    out = gat.apply(config, layer, h, graph)
    logits: jax.Array = out[..., :k, :] @ params["classifier.weight"].T
    return logits


def draw(results: Sequence[Curves], path: Path) -> None:
    """Both curves on top of each other, and below them their difference in both precisions."""
    figure, (losses, difference) = plt.subplots(
        2, 1, figsize=(8, 6), height_ratios=(2, 1), sharex=True, layout="constrained"
    )
    losses.plot(results[0].in_torch, color="tab:orange", linewidth=6, alpha=0.5, label="PyTorch")
    losses.plot(results[0].in_jax, color="black", linewidth=1.2, linestyle="--", label="JAX")
    losses.set_ylabel("cross-entropy")
    losses.set_ylim(bottom=0)
    losses.set_title(
        f"Dictionary lookup, GATv2 with one head, from the same parameters ({results[0].precision})"
    )
    losses.legend(frameon=False)
    for curves, color in zip(results, ("tab:blue", "tab:green"), strict=True):
        # an exact zero has no place on a logarithmic axis
        shown = np.where(curves.difference > 0, curves.difference, np.nan)
        difference.semilogy(shown, color=color, linewidth=1.2, label=curves.precision)
    difference.set_ylabel("difference")
    difference.set_xlabel("step of Adam")
    difference.legend(frameon=False, ncols=2, loc="upper left")
    difference.set_ylim(1e-17, 10)
    for axes in (losses, difference):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--k", type=int, default=10, help="number of keys (default: 10)")
    parser.add_argument("--steps", type=int, default=300, help="of Adam (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error(f"--steps must be 1 or more; got {arguments.steps}")
    run(arguments.output, k=arguments.k, n_steps=arguments.steps, seed=arguments.seed)


if __name__ == "__main__":
    mpl.use("Agg")
    main()
