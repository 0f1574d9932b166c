"""Does an order of the nodes help? `python -m benchmarks.locality`, on graphs that no cache holds."""

import argparse
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.measure import interleaved, summary
from benchmarks.report import Row, append_csv
from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.locality import Reordered, reorder

COLUMNS = ("graph", "order", "edges", "order ms", "forward ms", "step ms")
_DEGREE = 10
_COMMUNITY = 1024


def mesh(side: int) -> Tensor:
    """A torus of side x side nodes, each with the 10 around it."""
    row, column = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j] + [(2, 0), (-2, 0)]
    keys = [(row + i) % side * side + (column + j) % side for i, j in steps]
    return torch.stack((torch.arange(side**2).repeat(len(steps)), torch.cat(keys)))


def communities(side: int) -> Tensor:
    """Nodes that have nine of ten neighbours among the thousand of their community."""
    query = torch.arange(side**2).repeat_interleave(_DEGREE)
    near = query // _COMMUNITY * _COMMUNITY + torch.randint(_COMMUNITY, query.shape)
    far = torch.randint(side**2, query.shape)
    return torch.stack((query, torch.where(torch.rand(query.shape) < 0.9, near, far) % side**2))


def power_law(side: int) -> Tensor:
    """Both ends drawn with weight rank**-0.7."""
    share = (torch.arange(1, side**2 + 1).double() ** -0.7).cumsum(0)
    drawn = torch.rand(2, _DEGREE * side**2, dtype=torch.float64) * share[-1]
    return torch.searchsorted(share, drawn).clamp(max=side**2 - 1)


def uniform(side: int) -> Tensor:
    """Both ends drawn evenly."""
    return torch.randint(side**2, (2, _DEGREE * side**2))


def by_degree(graph: Graph) -> Reordered:
    """Nodes that most edges end at or begin at come first."""
    degree = torch.bincount(graph.key_index, minlength=graph.n_keys) + graph.query_ptr.diff()
    return reorder(graph, degree.argsort(descending=True, stable=True))


ORDERS: dict[str, Callable[[Graph], Reordered]] = {
    "Cuthill-McKee": reorder,
    "degree": by_degree,
}


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.locality", description=__doc__)
    parser.add_argument("--side", type=int, default=1024, help="graphs have side x side nodes")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each graph")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    for make in tqdm((mesh, communities, power_law, uniform), unit="graph"):
        rows = measure(make, options.side, options.seconds)
        append_csv(rows, options.output / "locality.csv", COLUMNS)


def measure(make: Callable[[int], Tensor], side: int, seconds: float) -> list[Row]:
    """One row for the graph with its nodes numbered at random, and one for each order."""
    torch.manual_seed(0)
    n_nodes = side**2
    edge_index = torch.randperm(n_nodes)[make(side)]
    graphs = {"random": Graph.from_edge_index(edge_index, n_nodes)}
    times = {"random": 0.0}
    for name, order in ORDERS.items():
        start = perf_counter()
        graphs[name] = order(graphs["random"]).graph
        times[name] = 1e3 * (perf_counter() - start)
    layer = GraphAttentionV2Layer(16, 32, n_heads=4, dropout=0.0)
    h, cotangent = torch.randn(n_nodes, 16), torch.randn(n_nodes, 32)

    def forward(graph: Graph) -> None:
        with torch.no_grad():
            layer(h, graph)

    def step(graph: Graph) -> None:
        layer.zero_grad()
        layer(h, graph).backward(cotangent)

    work: dict[str, Callable[[], object]] = {}
    for name, graph in graphs.items():
        work[f"{name} forward"] = lambda graph=graph: forward(graph)  # type: ignore[misc]
        work[f"{name} step"] = lambda graph=graph: step(graph)  # type: ignore[misc]
    medians = summary(interleaved(work, seconds, lambda: None))
    return [
        {
            "graph": make.__name__.replace("_", " "),
            "order": name,
            "edges": graph.n_edges,
            "order ms": times[name],
            "forward ms": medians[f"{name} forward"],
            "step ms": medians[f"{name} step"],
        }
        for name, graph in graphs.items()
    ]


if __name__ == "__main__":
    main()
