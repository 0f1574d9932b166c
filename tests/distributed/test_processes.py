"""A process that fails or hangs fails the test that runs it."""

import time
from pathlib import Path

import pytest
import torch.distributed as dist
from processes import run_processes

pytestmark = pytest.mark.skipif(
    not dist.is_gloo_available(), reason="PyTorch was built without gloo"
)


def fail(rank: int) -> None:
    if rank == 1:
        raise ValueError("spoiled")
    dist.barrier()


def hang(_rank: int) -> None:
    time.sleep(1000)


def test_an_error_comes_back(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 1: Traceback .* in fail.*spoiled"):
        run_processes(fail, 2, tmp_path)


def test_a_process_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="did not end in 8 s"):
        run_processes(hang, 1, tmp_path, join_within=8)
