"""Features of which most are zero: `h` as a sparse matrix, and what a layer does with it.

A bag of words is one per cent words. Its product with a projection's matrix reads what is stored, and so
does the gradient of that matrix. What comes out is dense, as all that follows.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import embedding_bag
from torch.utils.weak import WeakIdKeyDictionary

from gatv2.graph.edge_index import in_its_memory
from gatv2.graph.kept import prepared_once
from gatv2.graph.matrix import LAYOUTS, check_layout, stored_in
from gatv2.graph.sort import sort_by_key
from gatv2.numba.support import import_failure
from gatv2.optional import check_scipy_matrix, is_from
from gatv2.precision import lowered
from gatv2.projection import are_parameters_freed, is_plain
from gatv2.torch_internals import (
    coo_entries,
    is_inspectable,
    is_mapped_by_autograd,
    made_to_last,
    needs_dispatcher,
    without_transforms,
)


class SciPyMatrix(Protocol):
    """A matrix or an array of scipy.sparse, which has no types of its own."""

    def tocsr(self) -> Any: ...  # noqa: D102


Features = Tensor | SciPyMatrix


def as_features(h: object, name: str = "h") -> Tensor:
    """A tensor as it is, but a sparse one, or a sparse matrix of SciPy, in CSR.

    Raises:
        TypeError: neither a tensor nor a matrix.
        ValueError: a sparse one has not two dimensions, or a gradient is wanted of it.
    """
    if isinstance(h, Tensor):
        if h.layout is torch.strided:
            return h
        check_layout(h, name)
        with without_transforms():  # which would wrap the matrix, and can't
            return _of_torch(h, name)
    if not is_from("scipy.sparse", "issparse", h):
        remedy = "" if h is None else f": convert it with `torch.as_tensor({name})`"
        raise TypeError(
            f"`{name}` must be a torch.Tensor, dense or sparse, or a scipy.sparse matrix; "
            f"got {type(h).__name__}{remedy}"
        )
    matrix: Any = h
    _check_ndim(matrix.ndim, tuple(matrix.shape), name)
    if matrix.format != "csr":  # which is checked when its order is used
        check_scipy_matrix(matrix, name)
        matrix = matrix.tocsr()
    with without_transforms():
        crow, column, value = map(in_its_memory, (matrix.indptr, matrix.indices, matrix.data))
        return _matrix(crow, column, value, matrix.shape, _order_of(matrix, crow, column))


def project(projection: nn.Module, h: Tensor, plain: type[nn.Module] = nn.Linear) -> Tensor:
    """What a projection makes of features, dense or in CSR; one that is not plain sees them itself."""
    weights = _weights((projection,), h, plain)
    if weights is None:
        projected: Tensor = projection(h)
        return projected
    return _project(weights, (projection,), h)[0]


def project_sides(
    projections: tuple[nn.Module, nn.Module],
    sides: tuple[Tensor, Tensor],
    plain: type[nn.Module] = nn.Linear,
    *,
    is_shared: bool,
) -> tuple[Tensor, Tensor]:
    """`project`, by each of two projections its own features.

    If these are the same ones, the first projection serves for both where it is shared, and a matrix in
    CSR is multiplied by both weights at once.
    """
    (one, other), (h, h_other) = projections, sides
    if is_shared and h is h_other:
        projected = project(one, h, plain)
        return projected, projected
    weights = _weights(projections, h, plain) if h is h_other else None
    if weights is None:
        return project(one, h, plain), project(other, h_other, plain)
    first, second = weights
    if _form(first) == _form(second):
        of_one, of_other = _project(weights, projections, h)
        return of_one, of_other
    return _project([first], [one], h)[0], _project([second], [other], h)[0]


def _weights(
    projections: Sequence[nn.Module], h: Tensor, plain: type[nn.Module]
) -> list[Tensor] | None:
    """The weights of plain projections by which a matrix in CSR is multiplied; None if it is not.

    They are asked for once: one that is parametrized is computed anew each time.
    """
    if h.layout is torch.strided or not _is_sparse(h):
        return None
    if not all(is_plain(projection, plain) for projection in projections):
        return None
    weights: list[Any] = [projection.weight for projection in projections]
    fit = all(weight.shape[1:] == h.shape[1:] for weight in weights)
    return weights if fit else None


def _form(weight: Tensor) -> tuple[object, ...]:
    return weight.shape, weight.dtype, weight.requires_grad


def _project(
    weights: Sequence[Tensor], projections: Sequence[nn.Module], h: Tensor
) -> list[Tensor]:
    """The products of a matrix in CSR and weights of one form, with the projections' biases."""
    dtype = weights[0].dtype
    computed_in = torch.promote_types(dtype, torch.float32)  # there are no products in half
    with without_transforms():  # which would wrap the matrix, and can't
        value = h.values().to(computed_in)
    order = _order_of_csr(h)
    outs = _products(order, value, [weight.to(computed_in) for weight in weights])
    dtype = lowered(weights[0])
    biases: list[Any] = [projection.bias for projection in projections]
    return [
        (out if bias is None else out + bias).to(dtype)
        for out, bias in zip(outs, biases, strict=True)
    ]


def drop_features(h: Tensor, probability: float, training: bool) -> Tensor:
    """Dropout on features; of a matrix in CSR on those that it stores, as the rest is zero anyway."""
    if not _is_sparse(h):
        return drop(h, probability, training)
    if not (training and probability):
        return h
    value = drop(h.values(), probability)
    return _matrix(h.crow_indices(), h.col_indices(), value, h.shape, _order_of_csr(h))


def take_rows(h: Tensor, rows: slice) -> Tensor:
    """Some rows of features, `[*batch, n_nodes, in_features]` or in CSR."""
    if not _is_sparse(h):
        return h[..., rows, :]
    ptr = h.crow_indices()[rows.start : rows.stop + 1]
    stored = slice(int(ptr[0]), int(ptr[-1]))
    shape = (ptr.shape[0] - 1, h.shape[1])
    return _matrix(ptr - ptr[0], h.col_indices()[stored], h.values()[stored], shape)


def _is_sparse(h: Tensor) -> bool:
    return h.layout is not torch.strided and h.layout in LAYOUTS


def _of_torch(h: Tensor, name: str) -> Tensor:
    _check_ndim(h.ndim, tuple(h.shape), name)
    if h.layout == torch.sparse_coo and h.dense_dim():
        raise ValueError(
            f"a sparse `{name}` must store numbers; got {h.dense_dim()} dense dimensions"
        )
    if h.requires_grad:
        raise ValueError(
            f"a sparse `{name}` must not require a gradient, as what it does not store would have none: "
            "pass it dense, `.to_dense()`, or detached"
        )
    if h.layout == torch.sparse_csr:
        return h
    if h.layout != torch.sparse_coo:
        with _quietly():
            _check_entries(h, name)
            csr: Tensor = h.to_sparse_coo().to_sparse_csr().clone()  # may have the values' memory
        return csr

    def convert() -> Tensor:
        with _quietly():
            _check_entries(h, name)
            matrix: Tensor = h.to_sparse_csr().clone()  # likewise
        _ours[matrix] = _Order.of(matrix.crow_indices(), matrix.col_indices(), matrix.shape[1])
        return matrix

    reading = (torch.sparse_csr, *h.shape)  # which `sparse_resize_` changes, and no entry
    return prepared_once(h, coo_entries(h), reading, convert)


def _check_entries(h: Tensor, name: str) -> None:
    """Raise a ValueError for a matrix with entries outside: PyTorch would write there to convert it."""
    parts = stored_in(h)
    if not all(map(is_inspectable, parts)):
        return
    is_coo = h.layout == torch.sparse_coo
    make: Any = torch.sparse_coo_tensor if is_coo else torch.sparse_compressed_tensor
    layout = {} if is_coo else {"layout": h.layout}
    try:
        make(*parts, h.shape, check_invariants=True, **layout)
    except RuntimeError as error:
        raise ValueError(f"a sparse `{name}` must have its entries inside: {error}") from error


def _check_ndim(ndim: int, shape: tuple[int, ...], name: str) -> None:
    if ndim != 2:
        raise ValueError(
            f"a sparse `{name}` must have shape (n_nodes, in_features), without batch dimensions; "
            f"got {shape}"
        )


def _matrix(
    crow: Tensor,
    column: Tensor,
    value: Tensor,
    shape: Sequence[int],
    order: "_Order | None" = None,
) -> Tensor:
    """A matrix in CSR; with its order, if that is known."""
    with _quietly():
        matrix = torch.sparse_csr_tensor(crow, column, value, tuple(shape), check_invariants=False)
    if order is not None and not torch.compiler.is_compiling():
        _ours[matrix] = order
    return matrix


@contextmanager
def _quietly() -> Iterator[None]:
    """Without PyTorch's warning, once a process, that these matrices are new; we use little of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        yield


class _Order:
    """Where the stored values of a matrix are, in memory that nobody else writes to.

    Attributes:
        crow: `[n_rows + 1]`, where the values of each row start.
        column: `[n_stored]`, the column of each value.
        n_columns: columns of the matrix.
    """

    def __init__(self, crow: Tensor, column: Tensor, n_columns: int) -> None:
        self.crow, self.column, self.n_columns = crow, column, n_columns
        self._transposed: tuple[_Order, Tensor] | None = None
        self._is_checked = False

    @classmethod
    def of(cls, crow: Tensor, column: Tensor, n_columns: int) -> "_Order":
        """That of a matrix in CSR."""
        with without_transforms():
            return cls(crow.clone(), column.clone(), n_columns)

    def check(self, value: Tensor) -> None:
        """Raise a ValueError unless this is where a matrix has its values: compiled loops trust it."""
        if self._is_checked and value.shape == self.column.shape:
            return
        from gatv2.numba.sparse_product import is_matrix

        crow, column = self.crow.numpy(), self.column.numpy()
        if not is_matrix(crow, column, self.n_columns, value.shape[0]):
            raise ValueError(
                f"a sparse `h` must have pointers that ascend from 0 to {value.shape[0]}, its values, "
                f"and columns in [0, {self.n_columns}); it has not"
            )
        self._is_checked = True

    def transposed(self) -> "tuple[_Order, Tensor]":
        """That of the transposed matrix, and which value is where in it; made when first asked for."""
        if self._transposed is None:
            n_rows = self.crow.shape[0] - 1
            with made_to_last(self.crow):
                row = torch.arange(n_rows, device=self.crow.device)
                row = row.repeat_interleave(self.crow.diff()).to(self.column.dtype)
                ptr, stored, row = sort_by_key(self.crow, self.column, row, self.n_columns)
            self._transposed = _Order(ptr, row, n_rows), stored
        return self._transposed


_ours: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""The orders of matrices that were made here and that nobody writes to: they need not be compared."""


def _order_of_csr(h: Tensor) -> _Order:
    order: _Order | None = None if torch.compiler.is_compiling() else _ours.get(h)
    if order is not None:
        return order
    with without_transforms():
        crow, column = h.crow_indices(), h.col_indices()
    return _order_of(h, crow, column)


def _order_of(matrix: Any, crow: Tensor, column: Tensor) -> _Order:
    """That of a matrix of somebody else's, which may write to it."""
    n_columns = matrix.shape[1]
    return prepared_once(
        matrix, (crow, column), (_Order, n_columns), lambda: _Order.of(crow, column, n_columns)
    )


def _products(order: _Order, value: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
    if not _is_compiled(value, weights):
        return [_Product.apply(value, weight, order) for weight in weights]  # type: ignore[no-untyped-call]
    outs: tuple[Tensor, ...] = _Compiled.apply(value, order, *weights)  # type: ignore[no-untyped-call]
    return outs


def _product(order: _Order, value: Tensor, weight: Tensor) -> Tensor:
    return _products(order, value, (weight,))[0]


def _gradient(order: _Order, value: Tensor, d_out: Tensor) -> Tensor:
    """The gradient of the weight: the product of the transposed matrix and the cotangent."""
    transposed, stored = order.transposed()
    return _product(transposed, value[stored], d_out.t()).t()


def _is_compiled(value: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether our loops, compiled for the CPU, compute products with others, or their gradients."""
    return not (
        needs_dispatcher((value, *others))
        or not value.is_cpu
        or import_failure() is not None
        or is_mapped_by_autograd(others)
    )


class _Compiled(torch.autograd.Function):
    """As `_Product` with each weight, where no transform is at work."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, order: _Order, *weights: Tensor) -> tuple[Tensor, ...]:
        from gatv2.numba import sparse_product

        order.check(value)
        ctx.order = order
        ctx.save_for_backward(value)
        if are_parameters_freed():
            weights = tuple(weight.clone() for weight in weights)
        outs = sparse_product.products(
            order.crow.numpy(),
            order.column.numpy(),
            value.numpy(),
            [weight.numpy(force=True) for weight in weights],
            torch.get_num_threads(),
        )
        return tuple(map(torch.from_numpy, outs))

    @staticmethod
    def backward(ctx: Any, *d_outs: Tensor) -> tuple[Tensor | None, ...]:
        (value,) = ctx.saved_tensors
        if torch.is_grad_enabled() or not _is_compiled(value, d_outs):
            return None, None, *[_gradient(ctx.order, value, d_out) for d_out in d_outs]
        from gatv2.numba import sparse_product

        order, stored = ctx.order.transposed()
        d_weights = sparse_product.gradients(
            order.crow.numpy(),
            order.column.numpy(),
            stored.numpy(),
            value.numpy(),
            [d_out.numpy(force=True) for d_out in d_outs],
            torch.get_num_threads(),
        )
        return None, None, *map(torch.from_numpy, d_weights)


class _Context(Protocol):
    """What the other methods get of `forward`."""

    order: _Order
    saved_tensors: tuple[Tensor]

    def save_for_backward(self, *tensors: Tensor) -> None: ...

    def save_for_forward(self, *tensors: Tensor) -> None: ...


class _Product(torch.autograd.Function):
    """`h @ weight.T` of `h` in CSR, whose parts are given: transforms of `torch.func` wrap no matrix."""

    @staticmethod
    def forward(value: Tensor, weight: Tensor, order: _Order) -> Tensor:
        rows = weight.t().contiguous()
        # faster than a product of PyTorch's sparse matrices, and without their warnings
        return embedding_bag(
            order.column,
            rows,
            order.crow,
            mode="sum",
            per_sample_weights=value,
            include_last_offset=True,
        )

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Tensor, Tensor, _Order], output: Tensor) -> None:
        value, _, ctx.order = inputs
        ctx.save_for_backward(value)
        ctx.save_for_forward(value)

    @staticmethod
    def backward(ctx: _Context, d_out: Tensor) -> tuple[None, Tensor, None]:
        (value,) = ctx.saved_tensors
        return None, _gradient(ctx.order, value, d_out), None

    @staticmethod
    def jvp(ctx: _Context, _value: None, d_weight: Tensor, _order: None) -> Tensor:
        (value,) = ctx.saved_tensors
        return _product(ctx.order, value, d_weight)

    @staticmethod
    def vmap(
        info: object,
        in_dims: tuple[int | None, int | None, None],
        value: Tensor,
        weight: Tensor,
        order: _Order,
    ) -> tuple[Tensor, int]:
        of_value, of_weight, _ = in_dims
        if of_weight is None or of_value is not None:
            raise NotImplementedError(
                "vmap maps over the weights of a projection, not over a sparse `h`: pass it dense"
            )
        weights = weight.movedim(of_weight, 0)
        product = _product(order, value, weights.flatten(0, 1))
        return product.unflatten(1, weights.shape[:2]), 1
