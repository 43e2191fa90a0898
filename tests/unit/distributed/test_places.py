"""The table of hosts, ranks and devices, and ranks that cannot be one run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ds_seq.distributed import World, contradictions, places
from ds_seq.distributed.places import Place, contradiction, notes, place_of, table, unpacked
from ds_seq.distributed.roll_call import PATIENCE, roll_call
from ds_seq.errors import UserError
from tests.ports import free_port


def _gpu(host: str, index: int, uuid: str, visible: int = 4) -> Place:
    return Place(host, f"10.0.0.{host[-1]}", 4, f"cuda:{index}", "NVIDIA H100", uuid, visible)


FOUR = [_gpu("n1", 0, "a"), _gpu("n1", 1, "b"), _gpu("n2", 0, "c"), _gpu("n2", 1, "d")]


def test_a_line_per_host() -> None:
    assert table(FOUR) == [
        "host  address   ranks  devices",
        "n1    10.0.0.1  0-1    cuda:0-1 (NVIDIA H100), 2 more unused",
        "n2    10.0.0.2  2-3    cuda:0-1 (NVIDIA H100), 2 more unused",
    ]


def test_ranks_that_alternate_between_hosts() -> None:
    lines = table([FOUR[0], FOUR[2], FOUR[1], FOUR[3]])
    assert [line.split()[2] for line in lines[1:]] == ["0,2", "1,3"]


def test_gpus_that_are_bound_to_ranks() -> None:
    bound = [_gpu("n1", 0, name, visible=1) for name in "ab"]
    assert table(bound)[1].endswith("2 GPUs, one visible to each (NVIDIA H100)")
    assert contradiction(bound) is None


def test_a_place_travels_as_text() -> None:
    here = place_of(World(1, 2, 1, 2, "127.0.0.1", 1234))
    assert unpacked(here.packed()) == here
    assert (here.address, here.size) == ("127.0.0.1", 2)
    assert contradiction(FOUR) is None


def test_the_first_host_is_shown_with_an_address_that_others_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(places, "own_address", lambda towards: "10.0.0.1")
    loopback = [place._replace(address="127.0.1.1") for place in FOUR[:2]]
    assert places.seen_from_others([*loopback, *FOUR[2:]]) == FOUR
    assert places.seen_from_others(loopback) == loopback  # one host


def test_two_ranks_on_one_gpu() -> None:
    shared = [*FOUR[:3], _gpu("n2", 0, "c")]
    assert "ranks 2 and 3 have the same GPU, cuda:0 (NVIDIA H100) of n2" in str(
        contradiction(shared)
    )


def test_a_rank_without_a_gpu_among_others() -> None:
    message = contradiction([*FOUR[:3], Place("n2", "10.0.0.2", 4, "cpu")])
    assert message is not None and "rank 3 on n2 has no GPU, and rank 2 on n2 has one" in message


def test_worlds_of_different_sizes_are_refused_by_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rank 1 believes another number of processes, through real stores."""
    monkeypatch.setenv(PATIENCE, "5")
    port, messages = free_port(), {}

    def call(rank: int, size: int) -> None:
        try:
            roll_call(World(rank, size, rank, size, "127.0.0.1", port))
        except UserError as error:
            messages[rank] = str(error)

    second = threading.Thread(target=call, args=(1, 3))
    second.start()
    call(0, 2)
    second.join()
    assert "rank 1 on" in messages[0] and "counts 3 processes" in messages[0]
    assert "host" in messages[0].splitlines()[1]
    assert "counts" in messages[1] or "has ended" in messages[1]


def test_the_first_rank_waits_for_one_that_expects_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "1")
    port = free_port()
    second = threading.Thread(
        target=lambda: pytest.raises(UserError, roll_call, World(1, 2, 1, 2, "127.0.0.1", port))
    )
    second.start()
    with pytest.raises(UserError, match=r"rank 0 counts 3 processes, but one on .* counts 2"):
        roll_call(World(0, 3, 0, 3, "127.0.0.1", port))
    second.join()


def test_processes_that_may_have_been_meant_to_be_one_run() -> None:
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    (note,) = notes({**step, "GROUP_WORLD_SIZE": "1"}, World(0, 4))
    assert "srun has started 2 tasks" in note and "torchrun --nnodes" in note
    assert not notes({**step, "GROUP_WORLD_SIZE": "2"}, World(0, 4))
    (note,) = notes({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, World())
    assert "one process in a SLURM job of 8 tasks" in note
    assert not notes({}, World())


_ASKS = """\
import runpy
refuse = runpy.run_path({module!r})["refuse_lost_hostfile"]
try:
    refuse({{"CROSS_SIZE": "1"}}, 2)
except Exception as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--hostfile", "nowhere", "train.py"], "there is no hostfile nowhere"),
        (["--num_gpus", "2", "--hostfile=nowhere", "train.py"], "there is no hostfile nowhere"),
        (["-H", "hosts", "train.py"], ""),
        (["train.py", "--hostfile", "nowhere"], ""),
    ],
)
def test_a_hostfile_that_deepspeed_has_not_found(
    tmp_path: Path, arguments: list[str], found: str
) -> None:
    """The parent is a program of DeepSpeed's name, started in another folder."""
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    rank, launcher = tmp_path / "rank.py", tmp_path / "deepspeed"
    rank.write_text(_ASKS.format(module=contradictions.__file__))
    launcher.write_text(f'#!/bin/sh\n"{sys.executable}" "{rank}"\necho\n')
    launcher.chmod(0o755)
    environ = {**os.environ, "PYTHONPATH": str(Path(contradictions.__file__).parents[2])}
    done = subprocess.run(
        [launcher, *arguments],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0 and not done.stderr
    assert found in done.stdout and bool(found) == bool(done.stdout.strip())


def test_gloo_listens_where_others_reach_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loopback interface stands in for one of a network."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that it is restored
    del os.environ["GLOO_SOCKET_IFNAME"]
    places.name_gloo_interface("127.0.0.1")
    assert "GLOO_SOCKET_IFNAME" not in os.environ  # all on one host
    monkeypatch.setattr(places, "is_loopback", lambda address: address == "127.0.1.1")
    monkeypatch.setattr("socket.gethostbyname", lambda name: "10.1.2.3")
    places.name_gloo_interface("127.0.0.1")
    assert "GLOO_SOCKET_IFNAME" not in os.environ  # its name is right
    monkeypatch.setattr("socket.gethostbyname", lambda name: "127.0.1.1")
    places.name_gloo_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    os.environ["GLOO_SOCKET_IFNAME"] = "eth7"
    places.name_gloo_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
