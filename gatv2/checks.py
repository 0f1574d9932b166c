"""Do tensors fit one another? Imports nothing of gatv2."""

from torch import Tensor


def check_projections(query: Tensor, key: Tensor, **attention_vectors: Tensor) -> None:
    """Raise unless features of queries and keys, and vectors that score their pairs, fit one another.

    Raises:
        TypeError: not a tensor, or not one floating-point dtype.
        ValueError: devices or shapes do not fit.
    """
    for tensor in (query, key, *attention_vectors.values()):
        if (
            not isinstance(tensor, Tensor)
            or tensor.dtype != query.dtype
            or tensor.device != query.device
        ):
            _refuse_kind({"query": query, "key": key, **attention_vectors})
    if not query.dtype.is_floating_point:
        _refuse_kind({"query": query, "key": key, **attention_vectors})
    heads = query.shape[-2:]
    if query.ndim < 3:
        raise ValueError(
            "`query` must have shape (*batch, n_queries, n_heads, n_hidden); "
            f"got {tuple(query.shape)}"
        )
    if key.ndim != query.ndim or (key.shape[:-3], key.shape[-2:]) != (query.shape[:-3], heads):
        raise ValueError(
            "`key` must have the shape of `query` but for the number of nodes; "
            f"got {tuple(key.shape)} and {tuple(query.shape)}"
        )
    for name, vector in attention_vectors.items():
        if vector.shape != heads:
            raise ValueError(
                f"`{name}` must have shape (n_heads, n_hidden)={tuple(heads)}; "
                f"got {tuple(vector.shape)}"
            )


def _refuse_kind(tensors: dict[str, Tensor]) -> None:
    """Raise for tensors that are not of one kind: which is another one, in which way."""
    query = tensors["query"]
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


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two parameters are equal; what is NaN in both is."""
    if one.shape != other.shape:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
