"""The example of several processes: the same curve on any number of them, and after one has died."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch.distributed as dist
from example_runs import EXAMPLES, WARNINGS, run_example
from planetoid_files import write_planetoid

EXAMPLE = "distributed_full_graph.py"
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="PyTorch was built without gloo"
)


def environment(**variables: str) -> dict[str, str]:
    local = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform.startswith("linux") else {}
    return {
        **os.environ,
        "PYTHONPATH": str(EXAMPLES.parent),
        "OMP_NUM_THREADS": "1",
        **local,
        **variables,
    }


def run_torchrun(n_processes: int, *arguments: str, timeout: float = 120) -> str:
    """What the example prints when torchrun starts it."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes))
    process = subprocess.Popen(
        [sys.executable, *torchrun, str(EXAMPLES / EXAMPLE), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PYTHONWARNINGS=",".join(WARNINGS)),
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes
        raise
    assert process.returncode == 0, errors
    return output


@contextmanager
def two_processes(*arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """The example on two processes, without torchrun, which would end one when the other has died."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(EXAMPLES / EXAMPLE), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(
                RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
            ),
        )
        for rank in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def wait_for_a_checkpoint(
    output: Path, processes: list[subprocess.Popen[str]], timeout: float = 120
) -> None:
    until = time.monotonic() + timeout
    while not any(not path.suffix for path in output.glob("epoch-*")):
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, f"no checkpoint in {timeout} s"
        time.sleep(0.01)


def curve(output: Path) -> list[list[float]]:
    """Losses and accuracies of each epoch."""
    _, *lines = (output / "curve.csv").read_text().splitlines()
    return [[float(x) for x in line.split(",")] for line in lines]


def assert_same_curve(actual: Path, expected: Path, n_epochs: int) -> None:
    """They are float64 and agree to 1e-9."""
    assert len(curve(actual)) == len(curve(expected)) == n_epochs
    for epoch, (line, exact) in enumerate(zip(curve(actual), curve(expected), strict=True), 1):
        assert line == pytest.approx(exact, rel=1e-9), f"epoch {epoch}"


@pytest.mark.parametrize("option", ["--epochs", "--save-every"])
def test_no_epochs_are_refused(option: str) -> None:
    """As they would be read as if nothing had been said."""
    told = run_example(EXAMPLE, option, "0", exit_code=2)
    assert f"{option} must be 1 or more; got 0" in told


def test_other_curves_are_noticed(tmp_path: Path) -> None:
    for name, loss in (("one", 0.5), ("other", 0.5 + 1e-8)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "curve.csv").write_text(f"loss,a\n1.0,0.25\n{loss},0.5\n")
    assert_same_curve(tmp_path / "one", tmp_path / "one", 2)
    for other, n_epochs in (("one", 3), ("other", 2)):
        with pytest.raises(AssertionError):
            assert_same_curve(tmp_path / "one", tmp_path / other, n_epochs)


def test_two_processes_learn_as_one_does(tmp_path: Path) -> None:
    options = ("--dataset", "synthetic", "--nodes", "2000", "--dtype", "float64", "--epochs", "60")
    alone = run_example(EXAMPLE, *options, "--output", str(tmp_path / "1"), timeout=120)
    output = run_torchrun(2, *options, "--output", str(tmp_path / "2"))
    assert_same_curve(tmp_path / "2", tmp_path / "1", 60)
    for text in (alone, output):
        assert "synthetic, 60 epochs: test accuracy 100.00%" in text
    assert "n_parts=2, n_nodes=2000, n_own=1000" in output


def test_goes_on_after_a_process_was_killed(tmp_path: Path) -> None:
    """With dropout of features and coefficients, which a resumed run has to draw as the first would."""
    root = write_planetoid(tmp_path / "data")
    options = ("--dataset", "cora", "--root", str(root), "--dtype", "float64", "--save-every", "3")
    whole, output = tmp_path / "whole", tmp_path / "killed"
    run_example(EXAMPLE, *options, "--epochs", "40", "--output", str(whole), timeout=120)
    with two_processes(*options, "--epochs", "1000000", "--output", str(output)) as processes:
        wait_for_a_checkpoint(output, processes)
        processes[1].send_signal(signal.SIGKILL)
        _, errors = processes[0].communicate(timeout=60)
        assert processes[0].returncode == 1
        assert "RuntimeError" in errors
    (output / "epoch-000039.partial").mkdir()  # as if it had died while it saved
    text = run_torchrun(2, *options, "--epochs", "30", "--output", str(output))
    assert "goes on after epoch" in text
    text = run_example(EXAMPLE, *options, "--epochs", "40", "--output", str(output), timeout=120)
    assert "goes on after epoch 30" in text
    assert_same_curve(output, whole, 40)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no process can be stopped here")
@pytest.mark.parametrize(("how", "timeout"), [("SIGKILL", "300"), ("SIGSTOP", "10")])
def test_a_process_that_is_gone_or_hangs_ends_the_others(
    tmp_path: Path, how: str, timeout: str
) -> None:
    """Rank 0, through which the others met, this time."""
    options = ("--nodes", "1000", "--dtype", "float64", "--epochs", "1000000", "--save-every", "1")
    arguments = (*options, "--output", str(tmp_path), "--timeout", timeout)
    with two_processes(*arguments) as processes:
        wait_for_a_checkpoint(tmp_path, processes)
        processes[0].send_signal(getattr(signal, how))
        _, errors = processes[1].communicate(timeout=60)
        assert processes[1].returncode == 1
        assert "Error" in errors
