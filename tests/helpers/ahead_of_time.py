"""Compile the Triton kernels for a GPU that is not there, and read what the assembler made of them."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gatv2.precision import computed_in
from gatv2.triton import arguments as of_kernel
from gatv2.triton import launch
from gatv2.triton.edge_pass import WIDTH, edge_kernel
from gatv2.triton.forward_pass import forward_kernel, join_kernel
from gatv2.triton.key_pass import join_keys_kernel, key_kernel
from gatv2.triton.query_pass import join_queries_kernel, query_kernel
from gatv2.triton.shape import edge_tile, padded_hidden, power_of_two, row_tile

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
}
NONE = "constexpr"
FORWARD = ("forward", "join")
BY_KEY = ("key", "join_keys")


class Case(NamedTuple):
    """A pass, and what it is compiled for."""

    name: str
    n_heads: int
    n_hidden: int
    dtype: torch.dtype = torch.float32
    dropout: bool = False
    has_edge_features: bool = False
    mask_heads: int = 0
    bias_heads: int = 0
    has_parts: bool = False
    has_d_alpha: bool = False
    is_dense: bool = False

    def __str__(self) -> str:
        defaults = type(self)._field_defaults
        flags = [x for x in self._fields[4:] if getattr(self, x) != defaults[x]]
        dtype = str(self.dtype).removeprefix("torch.")
        return "-".join([self.name, f"{self.n_heads}x{self.n_hidden}", dtype, *flags])


class Compiled(NamedTuple):
    """What the assembler says of a kernel."""

    registers: int
    spilled: int
    """Bytes of the stack."""
    shared: int
    """Bytes of shared memory of a program."""
    code: str
    """Its disassembly."""

    def times(self, instruction: str) -> int:
        """How often an instruction stands in the code, by the start of its name."""
        return len(re.findall(rf"\b{re.escape(instruction)}", self.code))


def shape_of(case: Case) -> of_kernel.Shape:
    """The tile that the library takes."""
    hidden = padded_hidden(case.n_heads, case.n_hidden, case.dtype)
    tile_hidden = power_of_two(hidden)
    if case.name == "edge":
        tile = edge_tile(case.n_heads, hidden, case.dtype, launch.TWO_ROWS)
        tile_hidden = max(tile_hidden, WIDTH.value // power_of_two(case.n_heads))
    else:
        registers = launch.ONE_ROW if case.name in FORWARD else launch.TWO_ROWS
        tile = row_tile(case.n_heads, hidden, case.dtype, registers)
    return of_kernel.Shape(
        n_heads=case.n_heads,
        n_hidden=hidden,
        heads=power_of_two(case.n_heads),
        hidden=tile_hidden,
        rows=tile.rows,
        edges=tile.edges,
        warps=tile.warps,
        accumulator=tl.float64 if case.dtype == torch.float64 else tl.float32,
        has_edge_features=case.has_edge_features,
        mask_heads=case.mask_heads,
        bias_heads=case.bias_heads,
        has_unused=case.mask_heads > 0 or case.bias_heads > 0,
        is_by_key=case.name in BY_KEY,
        split=launch.SPLIT,
    )


def signature_of(case: Case) -> tuple[Any, dict[str, Any]]:
    """A kernel, and the types of its arguments."""
    feature, number = POINTERS[case.dtype], POINTERS[computed_in(case.dtype)]
    part = number if case.has_parts else NONE
    features: dict[str, Any] = {"features": _features(case)}
    graph: dict[str, Any] = {"graph": _graph(case)}
    scalars: dict[str, Any] = {"slope": "fp64", "threshold": "u32", "factor": "fp64"}
    shape: dict[str, Any] = {"shape": "constexpr"}
    d_alpha = feature if case.has_d_alpha else NONE
    given = {"cotangents": of_kernel.Cotangents(feature, NONE, d_alpha, number, number)}
    out: dict[str, Any] = {
        "results": of_kernel.ForwardResults(feature, number, NONE, NONE, NONE, part, part, part)
    }
    d_query = {"results": of_kernel.QueryResults(feature, part, part, part)}
    d_bias = feature if case.bias_heads else NONE
    d_key: dict[str, Any] = {"results": of_kernel.KeyResults(feature, number, part, d_bias)}
    d_edges = {"results": of_kernel.EdgeResults(feature, number)}
    chunks = {"n_chunks": "i32"}
    kernels: dict[str, tuple[Any, dict[str, Any]]] = {
        "forward": (forward_kernel, features | graph | out | scalars),
        "join": (join_kernel, graph | out),
        "query": (query_kernel, features | graph | given | d_query | scalars),
        "join_queries": (join_queries_kernel, features | graph | given | d_query),
        "key": (key_kernel, features | graph | given | d_key | chunks | scalars),
        "join_keys": (join_keys_kernel, graph | d_key),
        "edge": (edge_kernel, features | graph | given | d_edges | chunks | scalars),
    }
    kernel, signature = kernels[case.name]
    return kernel, signature | shape


def _features(case: Case) -> of_kernel.Features:
    feature = POINTERS[case.dtype]
    of_edges = feature if case.has_edge_features else NONE
    return of_kernel.Features(feature, feature, feature, of_edges, of_edges)


def _graph(case: Case) -> of_kernel.Graph:
    index = NONE if case.is_dense else "*i32"
    order = of_kernel.Order(
        index,
        index,
        index if case.name in BY_KEY else NONE,
        "*i32" if case.has_parts else NONE,
        *["i32"] * 3,
    )
    edges = of_kernel.Edges(
        mask="*i1" if case.mask_heads else NONE,
        bias=POINTERS[case.dtype] if case.bias_heads else NONE,
        feature_row=index if case.has_edge_features or case.bias_heads else NONE,
        query=index if case.name == "edge" else NONE,
    )
    dropout = of_kernel.Dropout("*i64" if case.dropout else NONE, NONE, NONE)
    sizes = of_kernel.Sizes(*["i32"] * len(of_kernel.Sizes._fields))
    return of_kernel.Graph(order, edges, dropout, sizes)


def compiled(case: Case, capability: int, **shape: Any) -> Compiled:
    """Compile a case for a compute capability; `shape` is what is to be otherwise in its shape."""
    kernel, signature = signature_of(case)
    full_shape = shape_of(case)._replace(**shape)
    constants: dict[tuple[int, ...], Any] = {(len(signature) - 1,): full_shape}
    attributes = {}
    for path, name, kind in _paths(signature):
        if kind == NONE and len(path) > 1:
            constants[path] = None
        if kind.startswith("*") and name != "graph":  # as a launch finds: features are aligned
            attributes[path] = [["tt.divisibility", 16]]
    binary = triton.compile(
        ASTSource(kernel, signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": full_shape.warps, "enable_fp_fusion": True},
    )
    return inspected(binary)


def inspected(binary: Any) -> Compiled:
    """What the assembler says of what Triton has compiled."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(binary.asm["cubin"])
        usage = _printed(TOOLS / "cuobjdump", "-res-usage", cubin)
        numbers = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
        spilled = numbers["STACK"] + numbers["LOCAL"]
        shared: int = binary.metadata.shared
        return Compiled(numbers["REG"], spilled, shared, _printed(TOOLS / "nvdisasm", "-c", cubin))


def _paths(signature: dict[str, Any]) -> Iterator[tuple[tuple[int, ...], str, str]]:
    """Where each argument stands, in which of the kernel's parameters, and its type."""

    def walk(path: tuple[int, ...], kind: Any) -> Iterator[tuple[tuple[int, ...], str]]:
        if isinstance(kind, str):
            yield path, kind
            return
        for i, part in enumerate(kind):
            yield from walk((*path, i), part)

    for i, (name, kind) in enumerate(signature.items()):
        for path, leaf in walk((i,), kind):
            yield path, name, leaf


def _printed(*command: Any) -> str:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return result.stdout + result.stderr
