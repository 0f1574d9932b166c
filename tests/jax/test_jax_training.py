"""Training on padded batches of graphs of many sizes: it learns, and nothing is compiled twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import pytest
from example_runs import EXAMPLES

jax = pytest.importorskip("jax")
for _library in ("equinox", "flax", "optax"):
    pytest.importorskip(_library)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """A list that grows by one entry with each program that XLA compiles."""
    compiled: list[str] = []

    def listen(event: str, *_: object, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("library", ["equinox", "flax"])
def test_compiles_once_and_learns(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sizes of the graphs, preparing and padding them counted in."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import jax_graphs as example

    n_batches = 60

    def batches() -> Iterator[example.Batch]:
        yield from example.draw_batches(0, n_batches)
        monkeypatch.setattr(example, "N_GRAPHS", 7)
        yield from example.draw_batches(0, 1)

    training = example.LIBRARIES[library](batches(), 0)
    first, _ = next(training)
    with compilations() as compiled:
        losses, accuracies = zip(*islice(training, n_batches - 1), strict=True)
    assert compiled == []
    assert sum(losses[-10:]) / 10 < 0.5 * first
    assert min(accuracies[-10:]) > 0.6
    with compilations() as compiled:
        next(training)
    assert compiled  # what the count must see: a batch of another size
