"""Compile the Triton kernels for a GPU that is not there, and read what the assembler says of them."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gatv2.triton import arguments as of_kernel
from gatv2.triton import launch
from gatv2.triton.edge_pass import WIDTH, edge_kernel
from gatv2.triton.forward_pass import forward_kernel, join_kernel
from gatv2.triton.key_pass import join_keys_kernel, key_kernel
from gatv2.triton.query_pass import join_queries_kernel, query_kernel
from gatv2.triton.shape import edge_tile, padded_hidden, power_of_two, row_tile

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}


class Case(NamedTuple):
    """A pass and what it is compiled for."""

    name: str
    n_heads: int
    n_hidden: int
    dtype: torch.dtype = torch.float32
    dropout: bool = False
    n_edge_features: int = 0
    mask_heads: int = 0
    parts: bool = False
    dense: bool = False
    d_alpha: bool = False
    index: str = "i32"
    padded: bool = True


class Compiled(NamedTuple):
    """What ptxas and the disassembly say."""

    registers: int
    spilled: int
    sass: str
    ttgir: str

    def count(self, instruction: str) -> int:
        """Occurrences of an instruction, by the start of its name."""
        return len(re.findall(rf"\b{re.escape(instruction)}", self.sass))


def shape_of(case: Case) -> of_kernel.Shape:
    """The production tile of a case."""
    is_by_key = case.name in ("key", "join_keys")
    registers = launch.TWO_ROWS if is_by_key else launch.ONE_ROW
    hidden = (
        padded_hidden(case.n_heads, case.n_hidden, case.dtype) if case.padded else case.n_hidden
    )
    tile = row_tile(case.n_heads, hidden, case.dtype, registers)
    heads, tile_hidden = power_of_two(case.n_heads), power_of_two(hidden)
    if case.name == "edge":
        tile = edge_tile(case.n_heads, hidden, launch.TWO_ROWS)
        tile_hidden = max(tile_hidden, WIDTH.value // heads)
    return of_kernel.Shape(
        case.n_heads,
        hidden,
        heads,
        tile_hidden,
        tile.rows,
        tile.edges,
        tile.warps,
        tl.float64 if case.dtype == torch.float64 else tl.float32,
        case.n_edge_features > 0,
        case.mask_heads,
        is_by_key,
        launch.SPLIT,
    )


def signature_of(case: Case) -> tuple[Any, dict[str, Any]]:
    feature = "*" + TYPES[case.dtype]
    acc = "*fp64" if case.dtype == torch.float64 else "*fp32"
    index, none = "*" + case.index, "constexpr"
    has_edges = case.n_edge_features > 0
    features = of_kernel.Features(
        feature, feature, feature, feature if has_edges else none, feature if has_edges else none
    )
    is_by_key = case.name in ("key", "join_keys")
    lists = (none, none, none) if case.dense else (index, index, index if is_by_key else none)
    size = "i64" if case.dense else "i32"
    order = of_kernel.Order(*lists, "*i32" if case.parts else none, "i32", "i32", "i32")
    edges = of_kernel.Edges(
        "*i1" if case.mask_heads else none,
        index if has_edges and not case.dense else none,
        index if case.name == "edge" and not case.dense else none,
    )
    dropout = of_kernel.Dropout("*i64" if case.dropout else none, none, none)
    graph = of_kernel.Graph(
        order,
        edges,
        dropout,
        of_kernel.Sizes("i32", "i32", size, "i32", "i32", "i32", "i32", "i32", "i32"),
    )
    part = acc if case.parts else none
    cotangents = of_kernel.Cotangents(feature, none, feature if case.d_alpha else none, acc, acc)
    scalars = {"slope": "fp64", "threshold": "u32", "factor": "fp64"}
    shape = {"shape": "constexpr"}
    forward = of_kernel.ForwardResults(feature, acc, none, none, none, part, part, part)
    query = of_kernel.QueryResults(feature, part, part, part)
    key = of_kernel.KeyResults(feature, acc, part)
    kernels = {
        "forward": (
            forward_kernel,
            {"features": features, "graph": graph, "results": forward, **scalars},
        ),
        "join": (join_kernel, {"graph": graph, "results": forward}),
        "query": (
            query_kernel,
            {
                "features": features,
                "graph": graph,
                "cotangents": cotangents,
                "results": query,
                **scalars,
            },
        ),
        "join_queries": (
            join_queries_kernel,
            {"features": features, "graph": graph, "cotangents": cotangents, "results": query},
        ),
        "key": (
            key_kernel,
            {
                "features": features,
                "graph": graph,
                "cotangents": cotangents,
                "results": key,
                "n_chunks": "i32",
                **scalars,
            },
        ),
        "join_keys": (join_keys_kernel, {"graph": graph, "results": key}),
        "edge": (
            edge_kernel,
            {
                "features": features,
                "graph": graph,
                "cotangents": cotangents,
                "results": of_kernel.EdgeResults(feature, acc),
                "n_chunks": "i32",
                **scalars,
            },
        ),
    }
    kernel, signature = kernels[case.name]
    return kernel, {**signature, **shape}


def compile_case(case: Case, capability: int, kernel: Any = None, shape: Any = None) -> Compiled:
    own, signature = signature_of(case)
    kernel = kernel or own
    shape = shape or shape_of(case)
    constants: dict[Any, Any] = {"shape": shape}
    attributes: dict[Any, Any] = {}

    def walk(value: Any, path: tuple[int, ...], aligned: bool) -> None:
        if isinstance(value, tuple):
            for i, item in enumerate(value):
                walk(item, (*path, i), aligned)
        elif value == "constexpr" and len(path) > 1:
            constants[path] = None
        elif value.startswith("*") and aligned:
            attributes[path] = [["tt.divisibility", 16]]

    for i, (name, value) in enumerate(signature.items()):
        walk(value, (i,), name not in ("graph", "shape"))
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": shape.warps, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run(
            [TOOLS / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True
        )
        sass = subprocess.run(
            [TOOLS / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True
        ).stdout
    text = usage.stdout + usage.stderr
    registers = int(re.search(r"REG:(\d+)", text)[1])
    spilled = int(re.search(r"LOCAL:(\d+)", text)[1]) + int(re.search(r"STACK:(\d+)", text)[1])
    return Compiled(registers, spilled, sass, compiled.asm["ttgir"])
