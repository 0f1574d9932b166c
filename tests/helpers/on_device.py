"""A plugin of pytest, always loaded: with `--device cuda` the laws run over Triton's kernels on a GPU.

The tensors of a law stay on the CPU, where its references are. A kernel gets copies of them on the
device, and its results come back; both ways are differentiated, mapped and so on, as copies are.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gatv2 import dispatch
from gatv2.dispatch import Attention, Kernel
from gatv2.graph.edge_inputs import EdgeInputs


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where Triton's kernels run."""
    parser.addoption(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where Triton's kernels run"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Put the kernels for the device in the place of Triton's, before anybody asks for them."""
    device = torch.device(early_config.known_args_namespace.device)
    if device.type == "cpu":
        return
    (first, *_) = (kernel for kernel in dispatch.KERNELS if kernel.name == "triton")
    if not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: PyTorch finds no GPU")
    if reasons := first.unsupported(torch.empty(0, device=device)):
        raise pytest.UsageError(f"--device cuda: {'; '.join(reasons)}")
    dispatch.KERNELS = tuple(
        on_device(kernel, device) if kernel.name == "triton" else kernel
        for kernel in dispatch.KERNELS
    )


def on_device(kernel: Kernel, device: torch.device) -> Kernel:
    """A kernel for tensors on the CPU, which runs on a device."""

    def unsupported(*features: Tensor) -> list[str]:
        return kernel.unsupported(*(x.to(device) for x in features))

    return replace(
        kernel, attention=attention_on(kernel.attention, device), unsupported=unsupported
    )


def attention_on(attention: Attention, device: torch.device) -> Attention:
    """Attention over tensors on the CPU, computed on a device."""

    def attend(
        query: Tensor,
        key: Tensor,
        attn: Tensor,
        adjacency: Any,
        /,
        *,
        seed: Tensor | None,
        edges: EdgeInputs | None = None,
        score_bias: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        out, lse, alpha = attention(
            query.to(device),
            key.to(device),
            attn.to(device),
            adjacency.to(device),
            seed=None if seed is None else seed.to(device),
            edges=None if edges is None else EdgeInputs(*(x.to(device) for x in edges)),
            score_bias=None if score_bias is None else score_bias.to(device),
            **options,
        )
        return out.cpu(), lse.cpu(), None if alpha is None else alpha.cpu()

    return attend
