"""The examples' checkpoints: the latest that is whole, for any number of processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from example_runs import EXAMPLES
from processes import run_processes

PROBLEM = {"dataset": "one", "seed": 0}
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="PyTorch was built without gloo"
)


class State:
    """A tensor and a list, alike in all processes."""

    def __init__(self, value: float) -> None:
        self.tensor = torch.full((3,), value)
        self.history = [value]

    def state_dict(self) -> dict[str, Any]:
        return {"tensor": self.tensor, "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tensor, self.history = state["tensor"], state["history"]


def save_three_and_die(rank: int, directory: Path) -> None:
    import checkpoints

    kept = checkpoints.Checkpoints(directory, PROBLEM)
    assert not kept.restore(State(0))
    for epoch in (1, 2, 10):
        kept.save(State(epoch), epoch)

    def killed(_state: object, checkpoint_id: Path) -> None:
        checkpoint_id.mkdir(exist_ok=True)
        (checkpoint_id / f"__{rank}_0.distcp").write_bytes(b"half of it")
        raise KeyboardInterrupt

    checkpoints.save = killed  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        kept.save(State(11), 11)
    dist.barrier()
    assert (directory / "epoch-000011.partial").exists()


def restore(_rank: int, directory: Path) -> tuple[list[float], list[float], list[str]]:
    from checkpoints import Checkpoints

    with pytest.raises(ValueError, match=r"holds checkpoints of .*'one'.*, but the problem is"):
        Checkpoints(directory, PROBLEM | {"dataset": "other"})
    state = State(0)
    assert Checkpoints(directory, PROBLEM).restore(state)
    names = sorted(path.name for path in directory.glob("epoch-*"))
    return state.tensor.tolist(), state.history, names


def test_a_killed_save_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    directory = tmp_path / "of_the_run"
    run_processes(save_three_and_die, 2, tmp_path, directory)
    (path := tmp_path / "later").mkdir()
    for found in run_processes(restore, 3, path, directory).values():
        assert found == ([10.0] * 3, [10], ["epoch-000002", "epoch-000010"])
