"""A prepared graph in a file: every field of it, mapped and checked when it is loaded.

What the backward pass reads, `Graph.by_key`, is not saved: checking it would take as long as making it.
"""

from dataclasses import fields
from os import fspath
from typing import Any

from torch import Tensor

from gatv2.graph.check import check_graph
from gatv2.graph.edges import Edges, SortedEdges, trusted
from gatv2.tensor_file import PathLike, decimal, load_tensors, save_tensors

_KIND = "graph"
TENSORS = tuple(
    field.name for field in fields(SortedEdges) if field.type in (Tensor, Tensor | None)
)
"""Names of what a graph holds in tensors."""


def save_graph(graph: SortedEdges, path: PathLike) -> None:
    """See `Graph.save`."""
    values = {field.name: getattr(graph, field.name) for field in fields(graph)}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    numbers = {name: str(int(value)) for name, value in values.items() if isinstance(value, int)}
    if graph.batch_shape is not None:
        numbers["batch_shape"] = ",".join(map(str, graph.batch_shape))
    save_tensors(path, tensors, {"kind": _KIND, "flow": graph.flow, **numbers})


def load_graph(path: PathLike, build: type[Edges], *, mmap: bool) -> Edges:
    """Load a file of `save_graph` as an object of the class `build`; see `Graph.load`."""
    tensors, metadata = load_tensors(path, _KIND, TENSORS, mmap=mmap)
    values: dict[str, Any] = dict(tensors)
    try:
        for name, text in metadata.items():
            if name == "flow":  # older files have none
                values[name] = text
            elif name == "batch_shape":
                values[name] = tuple(map(decimal, text.split(",") if text else ()))
            elif name != "kind":
                values[name] = _flag(text) if name == "is_bipartite" else decimal(text)
        graph = build(**values)
        check_graph(graph)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{fspath(path)!r} holds no graph that kernels can run on ({error}), and yet its digest is "
            "right: save the graph again"
        ) from error
    return trusted(graph)


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(f"`is_bipartite` must be 0 or 1; got {text!r}")
    return text == "1"
