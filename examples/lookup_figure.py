"""The dictionary lookup with more and more keys
=============================================

Accuracy in training and in the test over the number of keys, for GAT and GATv2 with one head and
with eight, as in Figure 3 of the GATv2 paper::

    python examples/lookup_figure.py                                    # k = 4, 8, ..., 20, three seeds
    python examples/lookup_figure.py --k 4 --seeds 3 4 5 6 7 8 9        # ten seeds for the smallest

Every finished run is a row of the CSV. A program that was stopped goes on with the runs that are
missing.

A run ends when its training loss is below 0.001, or after so many steps of gradient descent. It
does not look at the test accuracy.
"""

import argparse
import itertools
import math
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from matplotlib import pyplot as plt
from run_log import Row, by, complete
from tqdm import tqdm

from gatv2 import GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.dictionary_lookup import DictionaryLookup, DictionaryLookupModel, accuracy, train
from gatv2.layer import GraphAttention

LAYERS: dict[str, type[GraphAttention]] = {
    "GAT": GraphAttentionLayer,
    "GATv2": GraphAttentionV2Layer,
}
HEADS = (1, 8)
BATCH_SIZE = 32
MAX_EPOCHS = 1000  # for small k: at k = 4 an epoch is one step
COLUMNS = ("layer", "n_heads", "k", "seed", "epochs", "train_accuracy", "test_accuracy")


def train_run(layer: str, n_heads: int, k: int, seed: int, max_steps: int) -> Row:
    """Train one model."""
    torch.manual_seed(seed)
    data = DictionaryLookup.generate(k, seed=seed)
    model = DictionaryLookupModel(k, LAYERS[layer], n_heads)
    if layer == "GAT":  # has no fused kernel, and masks are faster than edges on a small graph
        model.layer.backend = "dense"
    n_epochs = min(math.ceil(max_steps / math.ceil(len(data.train) / BATCH_SIZE)), MAX_EPOCHS)
    epochs = train(model, data, n_epochs=n_epochs, batch_size=BATCH_SIZE, seed=seed)
    with tqdm(epochs, total=n_epochs, leave=False, position=1, unit="epoch") as progress:
        for epoch in progress:
            progress.set_postfix(train=epoch.train_accuracy, test=epoch.test_accuracy)
            if epoch.loss < 1e-3:
                break
    return {
        "epochs": epoch.number,
        "train_accuracy": f"{accuracy(model, data.train):.4f}",
        "test_accuracy": f"{epoch.test_accuracy:.4f}",
    }


def draw(rows: list[Row], path: Path) -> None:
    """Training and test accuracy over k: the mean over seeds, and the range as a band."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    styles = {"GAT": ("tab:orange", "s"), "GATv2": ("tab:blue", "o")}
    for axis, column in zip(axes, ("train_accuracy", "test_accuracy"), strict=True):
        for layer, n_heads in itertools.product(LAYERS, HEADS):
            chosen = (row for row in rows if (row["layer"], row["n_heads"]) == (layer, n_heads))
            groups = by(chosen, "k", column)
            accuracies = [[100 * value for value in values] for values in groups.values()]
            color, marker = styles[layer]
            axis.fill_between(
                list(groups),
                list(map(min, accuracies)),
                list(map(max, accuracies)),
                color=color,
                alpha=0.15,
                linewidth=0,
            )
            axis.plot(
                list(groups),
                list(map(mean, accuracies)),
                color=color,
                marker=marker,
                linestyle="-" if n_heads == 1 else "--",
                label=f"{layer}, {n_heads} head{'s' if n_heads > 1 else ''}",
            )
        axis.set(xlabel="number of keys k", title=f"{column.split('_')[0]} accuracy (%)")
        axis.set(ylim=(-3, 103), xticks=sorted({row["k"] for row in rows}))
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Train what is missing, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--k", type=int, nargs="+", default=list(range(4, 21, 4)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--max-steps", type=int, default=5000, help="of runs that RESULTS has no row of"
    )
    parser.add_argument("--results", type=Path, default=Path("results/lookup.csv"))
    options = parser.parse_args()
    if options.max_steps < 1:
        parser.error(f"--max-steps must be 1 or more; got {options.max_steps}")
    runs = [
        {"layer": layer, "n_heads": n_heads, "k": k, "seed": seed}
        for seed, k, layer, n_heads in itertools.product(options.seeds, options.k, LAYERS, HEADS)
    ]
    rows = complete(options.results, runs, partial(train_run, max_steps=options.max_steps), COLUMNS)
    picture = options.results.with_suffix(".svg")
    draw(rows, picture)
    print(f"results: {options.results}\npicture: {picture}")


if __name__ == "__main__":
    main()
