"""One command over two hosts: experts on both, and the losses of two processes on one host."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.two_hosts import Hosts, two_hosts, why_not
from tests.ports import free_port
from tests.slurm.conftest import experiment
from tests.system.commands import Finished, run, script, started
from tests.system.forked import train
from tests.system.runs import losses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
__all__ = ["experiment"]

BIN = Path(sys.executable).parent
TIMEOUT = 120.0


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if (reason := why_not()) is not None:
        pytest.skip(f"no two hosts can be had here: {reason}")
    with two_hosts(tmp_path_factory.mktemp("hosts")) as running:
        yield running


@pytest.fixture(scope="module")
def expected(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of two processes on one host."""
    folder = tmp_path_factory.mktemp("alone")
    train(experiment, f"run_dir={folder}", ranks=2, timeout=150)[0].check()
    return losses(folder)


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed takes from this file, in its working folder, what it sets on all hosts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".deepspeed_env").write_text("DS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\n")


def _deepspeed(hosts: Hosts, *options: str) -> list[str]:
    """`deepspeed` on the first host; without the check, which knows no options of ssh."""
    port = str(free_port())
    launcher = [str(BIN / "deepspeed"), "--hostfile", str(hosts.hostfile), "--master_port", port]
    return [*launcher, "--no_ssh_check", "--master_addr", hosts.first.address, *options]


def _assert_on_both(hosts: Hosts, finished: Finished) -> None:
    text = finished.out + finished.err
    for rank, host in enumerate((hosts.first, hosts.second)):
        assert any(
            line.split()[-4:] == [host.name, host.address, str(rank), "cpu"]
            for line in text.splitlines()
        ), text


def test_deepspeed_over_ssh(
    hosts: Hosts, experiment: Path, expected: dict[int, float], tmp_path: Path
) -> None:
    command = [*_deepspeed(hosts), str(script("train")), str(experiment), f"run_dir={tmp_path}/run"]
    done = run(hosts.first.command(*command), TIMEOUT, {"PDSH_SSH_ARGS_APPEND": hosts.ssh}).check()
    _assert_on_both(hosts, done)
    assert losses(tmp_path / "run") == expected


def test_deepspeed_over_open_mpi(
    hosts: Hosts, experiment: Path, expected: dict[int, float], tmp_path: Path
) -> None:
    agent = tmp_path / "agent"
    agent.write_text(f'#!/bin/sh\nexec ssh {hosts.ssh} "$@"\n')
    agent.chmod(0o755)
    ours = f"--allow-run-as-root --mca plm_rsh_agent {agent}"
    options = ("--launcher", "openmpi", "--launcher_args", ours)
    command = [*_deepspeed(hosts, *options), str(script("train")), str(experiment)]
    done = run(hosts.first.command(*command, f"run_dir={tmp_path}/run"), TIMEOUT).check()
    _assert_on_both(hosts, done)
    assert losses(tmp_path / "run") == expected


def test_deepspeed_without_ssh(
    hosts: Hosts, experiment: Path, expected: dict[int, float], tmp_path: Path
) -> None:
    """The same command on each host, with its number."""
    command = _deepspeed(hosts, "--no_ssh")
    more = [str(script("train")), str(experiment), f"run_dir={tmp_path}/run"]
    with started(hosts.second.command(*command, "--node_rank", "1", *more)) as second:
        first = run(hosts.first.command(*command, "--node_rank", "0", *more), TIMEOUT).check()
        second.wait(30).check()
    _assert_on_both(hosts, first)
    assert losses(tmp_path / "run") == expected


def test_torchrun(
    hosts: Hosts, experiment: Path, expected: dict[int, float], tmp_path: Path
) -> None:
    # by its name: torchrun does not find its own address where that name is 127.0.1.1
    endpoint = f"{hosts.first.name}:{free_port()}"
    agent = ["torchrun", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    command = [*agent, "--rdzv-endpoint", endpoint, script("train"), experiment]
    command.append(f"run_dir={tmp_path}/run")
    with started(hosts.second.command(*command)) as second:
        first = run(hosts.first.command(*command), TIMEOUT)
        second.wait(30).check()
        _assert_on_both(hosts, first.check())
    assert losses(tmp_path / "run") == expected


def test_a_host_that_is_switched_off_is_named(
    hosts: Hosts, experiment: Path, tmp_path: Path
) -> None:
    """Nobody starts rank 1."""
    command = [*_deepspeed(hosts, "--no_ssh", "--node_rank", "0"), script("train"), experiment]
    done = run(
        hosts.first.command(*command, f"run_dir={tmp_path}/run"), 60, {"DS_SEQ_JOIN_SECONDS": "3"}
    )
    assert done.code == 2 and "rank(s) 1 of 2 did not join at" in done.err
    assert "Traceback" not in done.err and not (tmp_path / "run").exists()
