"""The halo exchange: each process gets the rows of other processes that its edges need.

An exchange is begun and ended by two differentiable functions, and what runs between them runs while
rows travel. Backward mirrors it: the gradient of `finish` begins the exchange of gradients the other
way, and that of `start` ends it. Each of the two is the other's derivative, so every order of
differentiation works. All processes take part in each exchange, also those that send or receive nothing,
and in the meeting before it (`gatv2.distributed.agreement`).
"""

from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from gatv2.distributed.agreement import Meeting


class Gradients(NamedTuple):
    """The kind of an exchange in a backward pass."""

    what: str


class Exchange:
    """Rows on their way: `sent_counts[r]` of them to rank r, and `received_counts[r]` from it.

    The processes have met when it begins; for gradients it does that itself.
    """

    def __init__(
        self,
        sent_counts: tuple[int, ...],
        received_counts: tuple[int, ...],
        group: "dist.ProcessGroup | None",
        *,
        number: int = 0,
        what: str = "rows",
    ) -> None:
        """An exchange that is still to begin.

        Args:
            sent_counts: how many rows go to each rank.
            received_counts: how many come from each rank.
            group: the processes.
            number: that of the meeting before the forward pass.
            what: what the rows are, in words.
        """
        self.sent_counts = sent_counts
        self.received_counts = received_counts
        self.group = group
        self.number = number
        self.what = what
        self._on_its_way: tuple[dist.Work, Tensor] | None = None
        self._of_gradients: Exchange | None = None

    def begin(self, rows: Tensor) -> None:
        """Send rows `[n_sent, ...]`, grouped by rank."""
        received = rows.new_empty(sum(self.received_counts), *rows.shape[1:])
        work = dist.all_to_all_single(
            received,
            rows.contiguous(),
            list(self.received_counts),
            list(self.sent_counts),
            group=self.group,
            async_op=True,
        )
        self._on_its_way = work, received

    def end(self) -> Tensor:
        """Wait for the rows that others send, `[n_received, ...]`, grouped by rank."""
        assert self._on_its_way is not None
        (work, received), self._on_its_way = self._on_its_way, None
        work.wait()
        return received

    def begin_gradients(self, rows: Tensor) -> Tensor:
        """Send gradients of what came back to where it came from."""
        what = f"gradients of {self.what}"
        Meeting(Gradients(what), self.group, number=self.number).agreed()
        self._of_gradients = Exchange(
            self.received_counts, self.sent_counts, self.group, number=self.number, what=what
        )
        return start(rows, self._of_gradients)

    def end_gradients(self, token: Tensor) -> Tensor:
        """Wait for the gradients of what was sent."""
        assert self._of_gradients is not None
        return finish(token, self._of_gradients)


def start(rows: Tensor, exchange: Exchange) -> Tensor:
    """Begin an exchange of rows `[n_sent, ...]`; the empty result is for `finish`."""
    token: Tensor = _Start.apply(rows, exchange)  # type: ignore[no-untyped-call]
    return token


def finish(token: Tensor, exchange: Exchange) -> Tensor:
    """Wait for the exchange that `start` began: `[n_received, ...]`."""
    rows: Tensor = _Finish.apply(token, exchange)  # type: ignore[no-untyped-call]
    return rows


class _Context(Protocol):
    """What backward gets of forward."""

    exchange: Exchange


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, rows: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        exchange.begin(rows)
        return rows.new_empty(0)

    @staticmethod
    def backward(ctx: _Context, *d_token: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.end_gradients(*d_token), None


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, _token: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.end()

    @staticmethod
    def backward(ctx: _Context, *d_rows: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.begin_gradients(*d_rows), None
