"""The dictionary lookup: GAT fails, GATv2 solves it
=================================================

A query has to find the key of its own attribute among k keys, and to answer with its value. One
head of GAT and one head of GATv2 are trained on the same instances and tested on pairs of key and
value that training never showed. The picture has the attention of both, as in Figure 1 of the GATv2
paper::

    python examples/lookup.py --k 10
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from matplotlib import pyplot as plt
from tqdm import tqdm

from gatv2 import GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.dictionary_lookup import DictionaryLookup, DictionaryLookupModel, accuracy, train
from gatv2.layer import GraphAttention
from gatv2.ranking import HeadRanking, measure_ranking

LAYERS: dict[str, type[GraphAttention]] = {
    "GAT": GraphAttentionLayer,
    "GATv2": GraphAttentionV2Layer,
}


@dataclass(frozen=True)
class Result:
    """What training a model of one head came to."""

    name: str
    n_epochs: int
    train_accuracy: float
    test_accuracy: float
    ranking: HeadRanking
    attention: npt.NDArray[np.float32]
    """`[k, k]`, of the first test instance."""


def run(output: Path, *, k: int = 10, n_epochs: int = 10, seed: int = 3) -> Path:
    """Train both layers, print a table, and draw their attention; returns where the picture is."""
    data = DictionaryLookup.generate(k, n_held_out=k, seed=seed)  # of each key one pair is tested
    print(
        f"Dictionary lookup, k={k}: {len(data.train)} training and {len(data.test)} test instances, "
        "1 head"
    )
    results = [_train(name, data, n_epochs, seed) for name in LAYERS]
    print(
        "\nlayer  epochs  train accuracy  accuracy on unseen pairs  rankings of keys  "
        "rank correlation"
    )
    for result in results:
        rankings = f"{result.ranking.n_rankings} for {k} queries"
        print(
            f"{result.name:5}  {result.n_epochs:6}  {result.train_accuracy:14.1%}  "
            f"{result.test_accuracy:24.1%}  {rankings:>16}  {result.ranking.correlation:16.3f}"
        )
    path = output / "dictionary_lookup.png"
    _draw(results, path)
    return path


def _train(name: str, data: DictionaryLookup, n_epochs: int, seed: int) -> Result:
    torch.manual_seed(seed)
    model = DictionaryLookupModel(data.k, LAYERS[name])
    epoch = None
    with tqdm(total=n_epochs, desc=f"{name:5}", unit="epoch") as bar:
        for epoch in train(model, data, n_epochs=n_epochs, seed=seed):
            bar.update()
            bar.set_postfix(loss=f"{epoch.loss:.3f}", unseen=f"{epoch.test_accuracy:.1%}")
            if epoch.train_accuracy == epoch.test_accuracy == 1:
                break
    with torch.no_grad():
        h = model.features(data.test[0])
        _, alpha = model.layer(h, model.edge_index, return_attention=True)
    return Result(
        name,
        epoch.number if epoch else 0,
        accuracy(model, data.train),
        accuracy(model, data.test, data.is_unseen(data.test)),
        measure_ranking(model.layer, h, model.edge_index).heads[0],
        alpha.view(data.k, data.k).numpy(),
    )


def _draw(results: list[Result], path: Path) -> None:
    """Attention as a matrix, and below it each query's row as a line."""
    k = len(results[0].attention)
    figure, axes = plt.subplots(
        2, len(results), figsize=(7, 6.4), height_ratios=(2.2, 1), layout="constrained"
    )
    lines = mpl.colormaps["viridis"](np.linspace(0, 0.9, k))
    for column, result in enumerate(results):
        matrix, rows = axes[:, column]
        image = matrix.imshow(result.attention, cmap="Blues", vmin=0, vmax=1)
        matrix.set_title(
            f"{result.name}, 1 head: {_verdict(result.ranking)},\n"
            f"answers {result.test_accuracy:.0%} of unseen pairs",
            fontsize=10,
        )
        for (query, key), value in np.ndenumerate(result.attention):
            if value >= 0.005:
                color = "white" if value > 0.55 else "0.25"
                matrix.text(
                    key,
                    query,
                    f"{value:.2f}".lstrip("0"),
                    ha="center",
                    va="center",
                    fontsize=6,
                    color=color,
                )
        matrix.set_xticks(range(k), [f"$k_{{{key}}}$" for key in range(k)])
        matrix.set_yticks(range(k), [f"$q_{{{query}}}$" for query in range(k)])
        matrix.set_xlabel("key")
        matrix.set_ylabel("query")
        for query, row in enumerate(result.attention):
            rows.plot(row, color=lines[query], marker="o", markersize=3, linewidth=1.2)
        rows.set_xticks(range(k), [f"$k_{{{key}}}$" for key in range(k)])
        rows.set_xlabel("key (one line for each query)")
        rows.set_ylim(-0.03, 1.03)
        rows.spines[["top", "right"]].set_visible(False)
    axes[1, 0].set_ylabel("attention")
    figure.colorbar(image, ax=axes[0, :], shrink=0.8, label="attention")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def _verdict(ranking: HeadRanking) -> str:
    n = ranking.n_rankings
    return "1 ranking of keys" if n == 1 else f"{n} rankings of keys"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--k", type=int, default=10, help="number of keys (default: 10)")
    parser.add_argument("--epochs", type=int, default=10, help="at most (default: 10)")
    parser.add_argument("--seed", type=int, default=3, help="(default: 3)")
    arguments = parser.parse_args()
    path = run(arguments.output, k=arguments.k, n_epochs=arguments.epochs, seed=arguments.seed)
    print(f"\nThe attention of both is drawn in {path}")


if __name__ == "__main__":
    mpl.use("Agg")
    main()
