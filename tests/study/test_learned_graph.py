"""The example that learns a graph finds the one that was planted."""

import pytest
import torch
from example_runs import EXAMPLES


@pytest.mark.parametrize("seed", [0, 1])
def test_finds_every_edge_and_no_other(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from learned_graph import learn

    planted, bias = learn(seed)
    assert torch.equal(bias > 0, planted)
    assert bias[planted].min() - bias[~planted].max() > 2
    untrained = learn(seed, n_steps=1)[1]
    assert not torch.equal(untrained > 0, planted)
