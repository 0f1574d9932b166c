"""Whether a layer's projections and attention are one function of autograd's."""

from typing import Any

from torch import Tensor


def is_at_once(out: Tensor) -> bool:
    """Whether autograd knows the projections and attention as one function."""
    found: set[str] = set()
    functions: list[Any] = [out.grad_fn]
    while functions:
        function = functions.pop()
        if function is not None:
            found.add(function.name())
            functions += [each for each, _ in function.next_functions]
    return "_ProjectedBackward" in found
