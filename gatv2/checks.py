"""Do tensors fit one another? Imports nothing of gatv2."""

import torch
from torch import Tensor


def check_projections(query: Tensor, key: Tensor, **attention_vectors: Tensor) -> None:
    """Raise unless features of queries and keys, and vectors that score their pairs, fit one another.

    Raises:
        TypeError: not a tensor, or not one floating-point dtype.
        ValueError: devices or shapes do not fit.
    """
    tensors = {"query": query, "key": key, **attention_vectors}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`{name}` must be a torch.Tensor; got {type(tensor).__name__}")
        if not tensor.dtype.is_floating_point or tensor.dtype != query.dtype:
            dtypes = ", ".join(f"{name}: {tensor.dtype}" for name, tensor in tensors.items())
            raise TypeError(
                f"{', '.join(tensors)} must have one floating-point dtype; got {dtypes}"
            )
        if tensor.device != query.device:
            devices = ", ".join(f"{name}: {tensor.device}" for name, tensor in tensors.items())
            raise ValueError(f"{', '.join(tensors)} must be on one device; got {devices}")
    if query.ndim < 3:
        raise ValueError(
            "`query` must have shape (*batch, n_queries, n_heads, n_hidden); "
            f"got {tuple(query.shape)}"
        )
    if key.ndim != query.ndim or (key.shape[:-3], key.shape[-2:]) != (
        query.shape[:-3],
        query.shape[-2:],
    ):
        raise ValueError(
            "`key` must have the shape of `query` but for the number of nodes; "
            f"got {tuple(key.shape)} and {tuple(query.shape)}"
        )
    for name, vector in attention_vectors.items():
        if vector.shape != query.shape[-2:]:
            raise ValueError(
                f"`{name}` must have shape (n_heads, n_hidden)={tuple(query.shape[-2:])}; "
                f"got {tuple(vector.shape)}"
            )


def refuse_tracing() -> None:
    """Raise a RuntimeError under torch.jit.trace, which would keep one graph without a word."""
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        return
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise RuntimeError(
            "torch.jit.trace keeps the numbers of the graph that it was traced with: export the model "
            "with torch.export, which reads the graph at each call"
        )


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two parameters are equal; what is NaN in both is."""
    if one.shape != other.shape:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def check_ours(layer: object) -> None:
    """Raise a TypeError for what is not our layer."""
    if not isinstance(layer, GraphAttentionV2Layer):
        raise TypeError(f"`layer` must be a GraphAttentionV2Layer; got {type(layer).__name__}")


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray):
        return torch.tensor(value)
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor; got {type(value).__name__}")
    return value


def _check_dtypes(tensors: State, prefix: str) -> None:
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not all(dtype.is_floating_point for dtype in dtypes):
        got = ", ".join(f"{prefix}{name}: {tensor.dtype}" for name, tensor in tensors.items())
        raise TypeError(
            f"parameters must have one floating-point dtype; got {got}: convert them to one"
        )


def _check_shapes(tensors: State, prefix: str, shapes: Shapes) -> None:
    known: dict[int | str, int] = {}
    for name, shape in shapes.items():
        if name not in tensors:
            continue
        actual = tuple(tensors[name].shape)
        wanted = [size if isinstance(size, int) else known.get(size) for size in shape]
        fits = len(actual) == len(wanted) and all(
            n > 0 and n == (n if want is None else want)
            for n, want in zip(actual, wanted, strict=True)
        )
        if not fits:
            told = ", ".join(
                size if want is None or isinstance(size, int) else f"{size}={want}"
                for size, want in zip(map(str, shape), wanted, strict=True)
            )
            raise ValueError(f"`{prefix}{name}` must have shape ({told}), no size 0; got {actual}")
        known |= zip(shape, actual, strict=True)
        if "H" in known and "F" in known:
            known["H * F"] = known["H"] * known["F"]
