"""A type checker knows what every public function returns, and refuses an option that there is not."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# each line with what mypy says of it: the type that it reveals, or the code of its error
PROGRAM = """
import torch
import gatv2
from gatv2 import GATv2, Graph, GraphAttentionLayer, GraphAttentionV2Layer, gatv2_attention
from gatv2.distributed import Partition, gatv2_attention as attention_of_part
from gatv2.functional import gat_attention
from gatv2.inference import apply_in_blocks
def of(layer: GraphAttentionV2Layer, control: GraphAttentionLayer, model: GATv2, flag: bool,
       h: torch.Tensor, graph: Graph, part: Partition) -> None:
    reveal_type(layer(h, graph))  # Tensor
    reveal_type(layer(h, graph, return_attention=False, seed=1))  # Tensor
    reveal_type(layer(h, graph, return_attention=True))  # tuple[Tensor, Tensor]
    reveal_type(layer(h, graph, return_attention=flag))  # Tensor | tuple[Tensor, Tensor]
    reveal_type(layer.forward((h, h), graph, return_attention=True))  # tuple[Tensor, Tensor]
    reveal_type(layer.attention_scores(h, graph))  # Tensor
    layer(h, graph, return_atention=True)  # call-overload
    layer(h, graph, True)  # call-overload
    layer([1.0], graph)  # call-overload
    layer(h)  # call-overload
    GraphAttentionV2Layer(3, 8, 2, backend="spares")  # arg-type
    GraphAttentionV2Layer(3, 8, 2, residuals=True)  # call-arg
    reveal_type(control(h, graph, return_attention=True))  # tuple[Tensor, Tensor]
    control(h, graph, return_atention=True)  # call-overload
    reveal_type(model(h, graph))  # Tensor
    reveal_type(model(h, graph, return_attention=True))  # tuple[Tensor, list[Tensor]]
    reveal_type(model(h, graph, return_attention=flag))  # Tensor | tuple[Tensor, list[Tensor]]
    reveal_type(model.inference(h, graph))  # Tensor
    model(h, graph, return_atention=True)  # call-overload
    GATv2(3, 8, 2, edge_dims=1)  # call-arg
    reveal_type(gatv2_attention(h, h, h, graph))  # Tensor
    reveal_type(gatv2_attention(h, h, h, graph, return_attention=True))  # tuple[Tensor, Tensor]
    reveal_type(gatv2_attention(h, h, h, graph, return_lse=True))  # tuple[Tensor, Tensor]
    either = gatv2.gatv2_attention(h, h, h, graph, return_attention=flag)
    reveal_type(either)  # Tensor | tuple[Tensor, Tensor]
    both = gatv2_attention(h, h, h, graph, return_attention=True, return_lse=True, dropout=0.5)
    reveal_type(both)  # tuple[Tensor, Tensor, Tensor]
    reveal_type(gatv2_attention(h, h, h, graph, return_lse=flag))  # Tensor | tuple[Tensor, ...]
    gatv2_attention(h, h, h, graph, edge_feature=h)  # call-overload
    reveal_type(gat_attention(h, h, h, h, graph))  # Tensor
    reveal_type(gat_attention(h, h, h, h, graph, return_attention=True))  # tuple[Tensor, Tensor]
    reveal_type(attention_of_part(h, h, h, part))  # Tensor
    reveal_type(attention_of_part(h, h, h, part, return_attention=True))  # tuple[Tensor, Tensor]
    attention_of_part(h, h, h, graph)  # call-overload
    reveal_type(part.self_loops.graph)  # Partition
    reveal_type(Partition.split(graph, 2))  # list[Partition]
    reveal_type(apply_in_blocks(layer, h, graph))  # Tensor
    reveal_type(graph.by_key.ptr)  # Tensor
    reveal_type(Graph.load("a").to("cpu").coalesce())  # Graph
    reveal_type(gatv2.GATv2(3, 8, 2))  # GATv2
    gatv2.GraphAttentionV3Layer  # attr-defined
    gatv2.testing.nothing  # attr-defined
"""
IN_JAX = """
import jax
import gatv2.jax as gat
from gatv2.jax.equinox import GraphAttentionV2Layer as EquinoxLayer
from gatv2.jax.nnx import GraphAttentionV2Layer as FlaxLayer
def of(config: gat.Config, params: gat.Params, model: gat.GATv2, flag: bool, h: jax.Array,
       graph: gat.Graph, in_equinox: EquinoxLayer, in_flax: FlaxLayer, key: jax.Array) -> None:
    reveal_type(gat.gatv2_attention(h, h, h, graph))  # Array
    reveal_type(gat.gatv2_attention(h, h, h, graph, return_attention=True))  # tuple[Array, Array]
    reveal_type(gat.gatv2_attention(h, h, h, graph, return_lse=True))  # tuple[Array, Array]
    either = gat.gatv2_attention(h, h, h, graph, return_attention=flag)
    reveal_type(either)  # Array | tuple[Array, Array]
    both = gat.gatv2_attention(h, h, h, graph, return_attention=True, return_lse=True, seed=1)
    reveal_type(both)  # tuple[Array, Array, Array]
    gat.gatv2_attention(h, h, h, graph, edge_feature=h)  # call-overload
    reveal_type(gat.gat_attention(h, h, h, h, graph, return_attention=True))  # tuple[Array, Array]
    reveal_type(gat.apply(config, params, h, graph))  # Array
    reveal_type(gat.apply(config, params, h, graph, return_attention=True))  # tuple[Array, Array]
    reveal_type(config.apply(params, h, graph, return_attention=flag))  # Array | tuple[Array, Array]
    config.apply(params, h, graph, return_atention=True)  # call-overload
    gat.Config(3, 8, 2, backend="spares")  # arg-type
    reveal_type(config.replace(dropout=0.5))  # Config
    config.replace(drop=0.5)  # call-arg
    reveal_type(model.apply(params, h, graph))  # Array
    reveal_type(model.apply(params, h, graph, return_attention=True))  # tuple[Array, list[Array]]
    reveal_type(in_equinox(h, graph, inference=True))  # Array
    reveal_type(in_equinox(h, graph, key=key, return_attention=True))  # tuple[Array, Array]
    EquinoxLayer(3, 8, 2, key=key, residuals=True)  # call-arg
    reveal_type(in_flax(h, graph, return_attention=True))  # tuple[Array, Array]
    in_flax(h, graph, inference=True)  # call-overload
    reveal_type(graph.padded(9).coalesce())  # Graph
    reveal_type(graph.by_key.ptr)  # Array
    reveal_type(graph.self_loops().graph)  # Graph
"""
NAMES = {
    "jax._src.basearray.Array": "Array",
    "jax.Array": "Array",
    "gatv2.jax.graph.graph.Graph": "Graph",
    "gatv2.jax.layer.Config": "Config",
    "torch._tensor.Tensor": "Tensor",
    "gatv2.distributed.partition.Partition": "Partition",
    "gatv2.graph.graph.Graph": "Graph",
    "gatv2.model.GATv2": "GATv2",
    "builtins.": "",
}


def said(program: str, tmp_path: Path) -> list[str]:
    """What mypy says of each line of a program that has a comment, "" if nothing; with our settings."""
    file = tmp_path / "program.py"
    file.write_text(program)
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--show-error-codes"]
    result = subprocess.run([*command, str(file)], cwd=ROOT, capture_output=True, text=True)
    assert not result.stderr, result.stderr
    of_lines: dict[int, str] = {}
    for message in result.stdout.splitlines():
        place, kind, text = message.split(": ", maxsplit=2)
        if kind == "note" and text.startswith("Revealed type is "):
            text = text.removeprefix("Revealed type is ").strip('"')
        elif kind == "error":
            text = text.rpartition("[")[2].rstrip("]")
        else:
            continue
        for long, short in NAMES.items():
            text = text.replace(long, short)
        of_lines[int(place.rpartition(":")[2])] = text
    lines = enumerate(program.splitlines(), start=1)
    return [of_lines.pop(number, "") for number, line in lines if "  # " in line] + [
        *of_lines.values()
    ]


@pytest.mark.parametrize(
    ("program", "needed"), [(PROGRAM, ()), (IN_JAX, ("jax", "equinox", "flax"))]
)
def test_types_are_those_that_a_user_reads(
    program: str, needed: tuple[str, ...], tmp_path: Path
) -> None:
    for package in needed:
        pytest.importorskip(package)
    expected = [line.partition("  # ")[2] for line in program.splitlines() if "  # " in line]
    assert said(program, tmp_path) == expected
    assert not any("Any" in text for text in expected)


def test_another_answer_is_noticed(tmp_path: Path) -> None:
    program = 'reveal_type(int("1"))  # str\n1 + 1  # operator\n1 + ""\n'
    assert said(program, tmp_path) == ["int", "", "operator"]
