"""Checkpoints of a run of several processes, which any number of processes can go on from."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.stateful import Stateful


class Checkpoints:
    """The latest states of a run, `DIR/epoch-000010` and so on; all processes call each method together.

    A state is written under another name, which it gives up when it is complete: whenever a process is
    killed, the state before is there and whole.

    Args:
        directory: one that all processes read and write.
        problem: what the run works on; a directory keeps to one problem.

    Raises:
        ValueError: the directory holds a run of another problem.
    """

    def __init__(self, directory: Path, problem: dict[str, Any]) -> None:
        self.directory = directory
        file = directory / "problem.json"
        if dist.get_rank() == 0:
            directory.mkdir(parents=True, exist_ok=True)
            for left_over in directory.glob("*.partial"):
                shutil.rmtree(left_over)
            if not file.exists():
                file.write_text(json.dumps(problem))
        dist.barrier()
        found = json.loads(file.read_text())
        if found != problem:
            raise ValueError(
                f"{directory} holds checkpoints of {found}, but the problem is {problem}: choose "
                "another directory, or remove this one"
            )

    def restore(self, state: Stateful) -> bool:
        """Set `state` to the latest that was saved; whether there is one."""
        saved = self._saved()
        if saved:
            load({"state": state}, checkpoint_id=saved[-1])
        return bool(saved)

    def save(self, state: Stateful, epoch: int) -> None:
        """Save `state`, and remove all but the two latest."""
        complete = self.directory / f"epoch-{epoch:06}"
        partial = complete.with_suffix(".partial")
        save({"state": state}, checkpoint_id=partial)
        if dist.get_rank() == 0:  # its `save` returns when all processes have written
            partial.rename(complete)
            for old in self._saved()[:-2]:
                shutil.rmtree(old)

    def _saved(self) -> list[Path]:
        return sorted(path for path in self.directory.glob("epoch-*") if not path.suffix)
