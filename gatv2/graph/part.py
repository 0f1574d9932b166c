"""Part: a graph that attends together with other processes, as layers and self-loops know it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, NamedTuple, Self, TypedDict, TypeGuard, TypeVar, Unpack

from torch import Tensor

from gatv2.graph.edge_inputs import EdgeInputs
from gatv2.graph.graph import Graph
from gatv2.options import Backend, Flow

P = TypeVar("P")
T = TypeVar("T")


class AttendOptions(TypedDict):
    """Options of attention, over a graph or a part; see :func:`gatv2.functional.gatv2_attention`."""

    edges: EdgeInputs | None
    score_bias: Tensor | None
    negative_slope: float
    dropout: float
    seed: int | Tensor | None
    backend: Backend
    kernel: str
    return_attention: bool


class Loops(NamedTuple, Generic[P]):
    """A part with one self-loop at each own node; as `gatv2.graph.SelfLoops` has it of a graph."""

    graph: P
    kept: Tensor
    """Positions of the edges that are no self-loops, ascending."""
    query: Tensor
    """Own rows of the queries of those edges."""


class Part(ABC):
    """One process's part of a graph: some queries, and all edges by which they attend to others."""

    local: Graph
    """The edges among the part's own nodes."""

    @property
    @abstractmethod
    def n_own(self) -> int:
        """Number of the part's own nodes."""

    @property
    @abstractmethod
    def n_edges(self) -> int:
        """Number of edges of the part."""

    @property
    @abstractmethod
    def flow(self) -> Flow:
        """How rows of the edge index were read that the part was made of."""

    @property
    @abstractmethod
    def self_loops(self) -> Loops[Self]:
        """The part with self-loops, and which edges it has of this one."""

    @abstractmethod
    def told(self, call: Callable[[], T]) -> T:
        """What `call` returns; if it raises before it has met the other processes, they are told why."""

    @abstractmethod
    def attend(
        self,
        query: Tensor,
        key: Tensor,
        attn: Tensor,
        **options: Unpack[AttendOptions],
    ) -> tuple[Tensor, Tensor | None]:
        """Graph Attention v2 over the part, together with the other processes: output, coefficients."""


def is_part(graph: object) -> TypeGuard[Part]:
    """Whether a graph is a part; faster than to ask an abstract class about a `Graph` or a tensor."""
    return type(graph) is not Graph and type(graph) is not Tensor and isinstance(graph, Part)
