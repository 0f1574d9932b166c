"""`python -m gatv2`: what a bug report needs; `python -m gatv2 compile`: kernels ahead of time.

The report has versions, threads, kernels, and whether they agree.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from gatv2 import __version__, dispatch
from gatv2.dense import reference
from gatv2.graph import Graph
from gatv2.graph.adjacency import Adjacency
from gatv2.precompile import BACKENDS, compile_kernels
from gatv2.testing.assertions import largest_error, value_and_gradients

DISTRIBUTIONS = ("torch", "triton", "numpy", "numba", "scipy", "jax", "torch-geometric")
ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "MKL_NUM_THREADS", "NUMBA_", "OMP_", "TRITON_", "XLA_")
"""Beginnings of the names of variables that change what is computed with."""
NEGATIVE_SLOPE, DROPOUT = 0.2, 0.3
SEED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; 1 if it went wrong, else 0.

    Args:
        arguments: of the command line; by default those of this process.
    """
    options = _parser().parse_args(arguments)
    if options.command == "compile":
        return compile_ahead(options)
    return report()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gatv2",
        description="Print what a bug report needs: versions, processor, threads, and the largest error "
        "of each kernel on a small graph. The exit status is 1 if a kernel disagrees with the formula.",
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="[compile]")
    compiler = commands.add_parser(
        "compile",
        help="fill the cache of kernels",
        description="Compile the kernels for this CPU, so that first calls do not wait for them, but "
        "for those with rare options such as score_bias. They are kept in NUMBA_CACHE_DIR, or beside "
        "the package's sources, or in the user's cache directory.",
    )
    compiler.add_argument(
        "shapes",
        nargs="*",
        type=_shape,
        metavar="HxF",
        help="heads and features of a head, such as 8x8; by default one shape of each kind there is",
    )
    compiler.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    compiler.add_argument("--backend", choices=BACKENDS, action="append", help="both if left out")
    compiler.add_argument(
        "--edge-features", action="store_true", help="the kernels for edge features"
    )
    return parser


def _shape(text: str) -> tuple[int, int]:
    n_heads, separator, n_hidden = text.partition("x")
    are_numbers = separator and n_heads.isdecimal() and n_hidden.isdecimal()
    if not (are_numbers and int(n_heads) and int(n_hidden)):
        raise argparse.ArgumentTypeError(f"must be heads x features, such as 8x8; got {text!r}")
    return int(n_heads), int(n_hidden)


def compile_ahead(options: argparse.Namespace) -> int:
    """Compile kernels, with a line for each; 1 if there are none here or none is kept, else 0."""
    done = compile_kernels(
        options.shapes,
        dtype=getattr(torch, options.dtype),
        backends=options.backend or BACKENDS,
        has_edge_features=options.edge_features,
    )
    try:
        for (n_heads, n_hidden), backend in done:
            print(f"{backend}, {n_heads} heads of {n_hidden}, {options.dtype}", flush=True)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def report() -> int:
    """Print the report; 1 if a kernel disagrees with the formula, else 0."""
    print_environment()
    print(
        "\nLargest error against the formula, on a small graph: values and gradients, with dropout"
    )
    disagrees = False
    for name, dtype, outcome in check_kernels():
        label = f"{name:18}  {str(dtype).removeprefix('torch.'):7}"
        if isinstance(outcome, str):
            print(f"{label}  not available: {outcome}")
            continue
        # not `error <= allowed`, which is false for NaN
        agrees = outcome <= 1e3 * torch.finfo(dtype).eps
        disagrees |= not agrees
        print(f"{label}  {outcome:.1e}  {'agrees' if agrees else 'DISAGREES'}")
    return int(disagrees)


def print_environment() -> None:
    """Versions, the machine, and what this process is told about both."""
    print(f"gatv2 {__version__}, {Path(__file__).parent}")
    print(f"Python {platform.python_version()}, {platform.platform()}")
    print(f"{_processor()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads of PyTorch")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"GPUs: {', '.join(devices) or 'none'}")
    print(", ".join(f"{name} {_version(name)}" for name in DISTRIBUTIONS))
    for name in sorted(filter(lambda name: name.startswith(ENVIRONMENT), os.environ)):
        print(f"{name}={os.environ[name]}")


def check_kernels() -> Iterator[tuple[str, torch.dtype, float | str]]:
    """For each kernel and dtype: its largest error, or why it can't serve the call."""
    exact_inputs, mask, cotangent = small_problem()
    graph = Graph.from_mask(mask)
    exact = value_and_gradients(
        _function_of(reference.gatv2_attention, mask), exact_inputs, cotangent
    )
    for kernel in dispatch.KERNELS:
        adjacency = graph if kernel.backend == "sparse" else mask
        for dtype in (torch.float32, torch.float64):
            inputs = [x.to(dtype) for x in exact_inputs]
            if reasons := kernel.unsupported(*inputs):
                outcome: float | str = "; ".join(reasons)
            else:
                function = _function_of(kernel.attention, adjacency)
                results = value_and_gradients(function, inputs, cotangent.to(dtype))
                outcome = largest_error(results, exact)
            yield f"{kernel.backend} {kernel.name}", dtype, outcome
    if find_spec("jax") is not None:
        inputs = [x.float() for x in exact_inputs]
        for name, found in _jax_results(inputs, graph, cotangent):
            outcome = found if isinstance(found, str) else largest_error(found, exact)
            yield name, torch.float32, outcome


def _function_of(
    attention: dispatch.Attention, adjacency: Adjacency
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention over a graph as a function of its features."""

    def attend(query: Tensor, key: Tensor, attn: Tensor) -> Tensor:
        return attention(
            query,
            key,
            attn,
            adjacency,
            negative_slope=NEGATIVE_SLOPE,
            dropout=DROPOUT,
            seed=torch.tensor(SEED),
            return_attention=False,
        )[0]

    return attend


def _jax_results(
    inputs: list[Tensor], graph: Graph, cotangent: Tensor
) -> Iterator[tuple[str, str | list[Tensor]]]:
    """For each kernel of `gatv2.jax`: value and gradients, or why it can't serve the call."""
    try:
        import jax
    except ImportError as error:  # it may not go with another package
        yield "JAX", str(error)
        return

    from gatv2.jax import Graph as JaxGraph
    from gatv2.jax import as_jax, as_torch
    from gatv2.jax.adjacency import Adjacency
    from gatv2.jax.dispatch import KERNELS, Kernel
    from gatv2.jax.random import as_seed
    from gatv2.jax.sparse.tangent import Features

    query, key, attn = (as_jax(x) for x in inputs)
    for kernel in KERNELS:
        is_sparse = kernel.backend == "sparse"
        adjacency = JaxGraph.from_torch(graph) if is_sparse else as_jax(graph.to_mask())
        name = f"{kernel.backend} {kernel.name} (JAX)"
        features = Features(query, key, attn, None, None)
        if reasons := kernel.unsupported(features, adjacency):
            yield name, "; ".join(reasons)
            continue

        def attend(
            query: jax.Array,
            key: jax.Array,
            attn: jax.Array,
            kernel: Kernel = kernel,
            to: Adjacency = adjacency,
        ) -> jax.Array:
            return kernel.attention(
                query,
                key,
                attn,
                to,
                None,
                negative_slope=NEGATIVE_SLOPE,
                dropout=DROPOUT,
                seed=as_seed(SEED),
                return_attention=False,
            )[0]

        try:  # the platform is seen when a program is lowered
            out, pullback = jax.vjp(attend, query, key, attn)
        except ValueError as error:
            yield name, str(error)
            continue
        yield name, [as_torch(x) for x in (out, *pullback(as_jax(cotangent.float())))]


def small_problem() -> tuple[list[Tensor], Tensor, Tensor]:
    """Query, key and attn; a mask with a query without keys; a cotangent. The same each time."""
    generator = torch.Generator().manual_seed(0)
    n_queries, n_keys, heads = 7, 11, (3, 5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = [normal(n_queries, *heads), normal(n_keys, *heads), normal(*heads)]
    mask = torch.rand(n_queries, n_keys, 1, generator=generator) < 0.5
    mask[2] = False
    return inputs, mask, normal(n_queries, *heads)


def _processor() -> str:
    """The processor's name, which `platform` tells on some systems only."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
