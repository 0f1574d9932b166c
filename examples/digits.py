"""Handwritten digits, by dense and by sparse attention
====================================================

1,797 images of digits are the nodes. Each attends to its nearest neighbours and to itself. Ten
images of each digit have a label. A network of two GATv2 layers is trained on them twice from one
seed, with dropout: by masked dense attention, and by edges. Dropout is a function of seed and
position, so both drop the same edges and come to the same predictions::

    python examples/digits.py
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.neighbors import kneighbors_graph
from torch import Tensor, nn
from tqdm import tqdm

from gatv2 import GATv2
from gatv2.options import Backend


@dataclass(frozen=True)
class Digits:
    """The images as nodes of their nearest-neighbour graph.

    Attributes:
        images: `[n, 8, 8]`, from 0 to 1.
        classes: `[n]`.
        edge_index: `[2, n_edges]`: an image, and an image it attends to.
        labelled: `[n]` bool, the images whose class is known in training.
    """

    images: Tensor
    classes: Tensor
    edge_index: Tensor
    labelled: Tensor

    @classmethod
    def load(cls, *, n_neighbors: int = 8, n_labels: int = 10, seed: int = 0) -> "Digits":
        """Build the graph and draw `n_labels` images of each digit, whose class is known."""
        digits = load_digits()
        adjacency = kneighbors_graph(digits.data, n_neighbors + 1, include_self=True)
        classes = torch.from_numpy(digits.target).long()
        generator = torch.Generator().manual_seed(seed)
        labelled = torch.zeros(len(classes), dtype=torch.bool)
        for digit in range(10):
            members = (classes == digit).nonzero().squeeze(1)
            chosen = torch.randperm(len(members), generator=generator)[:n_labels]
            labelled[members[chosen]] = True
        return cls(
            torch.from_numpy(digits.images).float() / 16,
            classes,
            torch.from_numpy(np.stack(adjacency.nonzero())).long(),
            labelled,
        )

    @property
    def features(self) -> Tensor:
        """`[n, 64]`."""
        return self.images.flatten(1)


def train(digits: Digits, backend: Backend, *, n_epochs: int, seed: int) -> tuple[GATv2, Tensor]:
    """Train a network on the labelled images; the network and its logits for all images."""
    torch.manual_seed(seed)
    # two heads of 8 features each, then one head that gives the logits
    network = GATv2(64, 16, 10, n_heads=2, dropout=0.3, feature_dropout=0.3, backend=backend)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02, weight_decay=5e-4)
    labels = digits.classes[digits.labelled]
    for _ in tqdm(range(n_epochs), desc=f"{backend:6}", unit="epoch"):
        network.train()
        logits = network(digits.features, digits.edge_index)
        loss = nn.functional.cross_entropy(logits[digits.labelled], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        return network, network(digits.features, digits.edge_index)


def run(output: Path, *, n_epochs: int = 30, seed: int = 3) -> Path:
    """Train with both backends, print how they compare, and draw; returns where the picture is."""
    digits = Digits.load(seed=seed)
    n_nodes, n_labelled = len(digits.classes), int(digits.labelled.sum())
    print(
        f"Digits: {n_nodes} images, {digits.edge_index.shape[1]} edges, {n_labelled} labels, "
        "dropout 0.3"
    )
    _, dense = train(digits, "dense", n_epochs=n_epochs, seed=seed)
    network, sparse = train(digits, "sparse", n_epochs=n_epochs, seed=seed)
    tested = ~digits.labelled
    truth = digits.classes[tested]
    baseline = LogisticRegression(max_iter=1000).fit(
        digits.features[digits.labelled], digits.classes[digits.labelled]
    )
    print(f"\ntest accuracy on {len(truth)} images")
    for name, logits in (("GATv2, dense", dense), ("GATv2, sparse", sparse)):
        hits = logits.argmax(dim=1)[tested] == truth
        print(f"  {name:24}{hits.float().mean().item():.1%}")
    score = baseline.score(digits.features[tested], truth)
    print(f"  {'logistic regression':24}{score:.1%}  (the same labels, no graph)")
    n_same = int((dense.argmax(dim=1) == sparse.argmax(dim=1)).sum())
    difference = (dense - sparse).abs().max().item()
    print(
        f"dense and sparse: the same prediction for {n_same} of {n_nodes} images, "
        f"logits differ by at most {difference:.1e}"
    )
    path = output / "digits.png"
    _draw(digits, network, sparse.argmax(dim=1), path, seed)
    return path


def _draw(digits: Digits, network: GATv2, predicted: Tensor, path: Path, seed: int) -> None:
    """All images on a map of what the last layer sees; and whom some of them attend to."""
    with torch.no_grad():
        embedded = network.embed(digits.features, digits.edge_index)
        _, (_, alpha) = network(digits.features, digits.edge_index, return_attention=True)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(15, 7.6), width_ratios=(1, 1), layout="constrained"
    )
    _draw_map(left, digits, embedded, predicted, seed)
    _draw_neighbors(right, digits, alpha.squeeze(-1), predicted)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def _draw_map(axes: Axes, digits: Digits, embedded: Tensor, predicted: Tensor, seed: int) -> None:
    size, tile = 1800, 24
    position = TSNE(random_state=seed, init="pca").fit_transform(embedded.numpy())
    position -= position.min(axis=0)
    corner = (position / position.max(axis=0) * (size - 2 * tile) + tile / 2).astype(int)
    canvas = np.ones((size, size, 3))
    colors = mpl.colormaps["tab10"](range(10))[:, :3]
    for node, (x, y) in enumerate(corner):
        ink = np.kron(digits.images[node].numpy(), np.ones((tile // 8, tile // 8)))[:, :, None]
        window = canvas[y : y + tile, x : x + tile]
        window += ink * (colors[int(predicted[node])] - window)
    axes.imshow(canvas)
    center = corner + tile / 2
    wrong = ((predicted != digits.classes) & ~digits.labelled).numpy()
    for chosen, marker, color, label in (
        (digits.labelled.numpy(), "s", "0.2", f"label known ({int(digits.labelled.sum())})"),
        (wrong, "o", "red", f"predicted wrongly ({int(wrong.sum())})"),
    ):
        axes.scatter(
            center[chosen, 0],
            center[chosen, 1],
            s=40,
            marker=marker,
            facecolors="none",
            edgecolors=color,
            linewidths=1.1,
            label=label,
        )
    axes.set_title(
        "All images, placed by what the last layer sees (t-SNE),\ncoloured by the predicted digit"
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, frameon=False)
    axes.set_axis_off()


def _draw_neighbors(
    axes: Axes, digits: Digits, alpha: Tensor, predicted: Tensor, n_rows: int = 7
) -> None:
    """The test images that attention helps most, each with its keys in order of attention."""
    query, key = digits.edge_index
    agrees = (digits.classes[query] == digits.classes[key]).float()
    n_keys = query.bincount()
    # attention that goes to keys of the image's own class, beyond what equal weights would give
    gain = torch.zeros(len(n_keys)).index_add(0, query, (alpha - 1 / n_keys[query]) * agrees)
    gain[digits.labelled | (predicted != digits.classes)] = -1
    for row, node in enumerate(gain.topk(n_rows).indices):
        edges = (query == node).nonzero().squeeze(1)
        edges = edges[alpha[edges].argsort(descending=True)]
        _draw_tile(axes, digits, int(node), 0.0, row, "black", "")
        for column, edge in enumerate(edges.tolist()):
            neighbor, color = int(key[edge]), "tab:green" if agrees[edge] else "tab:red"
            _draw_tile(axes, digits, neighbor, column + 1.5, row, color, f"{alpha[edge]:.2f}")
    axes.set_title(
        "Where attention helps most: an image (left) and the images it attends to,\n"
        "itself included; green: of its class, red: not"
    )
    axes.set_xlim(-0.1, 1.5 + int(n_keys.max()))
    axes.set_ylim(1.25 * n_rows, -0.1)
    axes.set_aspect("equal")
    axes.set_axis_off()


def _draw_tile(
    axes: Axes, digits: Digits, node: int, x: float, row: int, color: str, text: str
) -> None:
    y = 1.25 * row
    image: npt.NDArray[np.float32] = digits.images[node].numpy()
    axes.imshow(image, cmap="gray_r", extent=(x, x + 0.9, y + 0.9, y))
    axes.add_patch(plt.Rectangle((x, y), 0.9, 0.9, fill=False, edgecolor=color, linewidth=2))
    axes.text(x + 0.45, y + 1.07, text, ha="center", va="center", fontsize=10)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--epochs", type=int, default=30, help="(default: 30)")
    parser.add_argument("--seed", type=int, default=3, help="(default: 3)")
    arguments = parser.parse_args()
    path = run(arguments.output, n_epochs=arguments.epochs, seed=arguments.seed)
    print(f"\nThe images, and whom they attend to, are drawn in {path}")


if __name__ == "__main__":
    mpl.use("Agg")
    main()
