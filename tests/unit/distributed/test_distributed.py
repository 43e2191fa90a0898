"""Rank of a process under each launcher, and collectives of a single process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ds_seq import distributed
from ds_seq.distributed import World, discover
from ds_seq.distributed.device import (
    allow_tf32,
    avoid_cudnn_attention,
    full_fp32,
    number_format,
)
from ds_seq.errors import UserError

SRUN = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "alpha,beta",
}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def test_without_a_launcher_there_is_one_process() -> None:
    assert discover({"HOME": "/root"}) == World(rank=0, size=1)


@pytest.mark.parametrize("local_size", ["LOCAL_SIZE", "LOCAL_WORLD_SIZE"])
def test_deepspeed_and_torchrun(local_size: str) -> None:
    env = {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        local_size: "4",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "1234",
    }
    assert discover(env) == World(5, 8, 1, 4, "node1", 1234)


def test_torchrun_within_a_slurm_job_counts() -> None:
    """`srun -n 2 torchrun --nproc_per_node 4`: SLURM knows of two processes, there are eight."""
    agent = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "node1", "LOCAL_WORLD_SIZE": "4"}
    two = {**SRUN, "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    env = {**two, **agent, "RANK": "7", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}
    assert (discover(env).rank, discover(env).size) == (7, 8)


def test_srun() -> None:
    assert discover(SRUN) == World(5, 8, 1, 4, "alpha", 15000 + 123456 % 20000)


def test_srun_takes_an_address_and_a_port_that_are_given() -> None:
    world = discover({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "777"})
    assert (world.address, world.port) == ("10.0.0.1", 777)


def test_a_batch_script_without_srun_is_one_process() -> None:
    without_step = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}
    assert discover(without_step) == World()


def _install_scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "scontrol"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_first_host_of_a_list_in_brackets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_scontrol(tmp_path, monkeypatch, '[ "$3" = "gpu[07-09]" ] && echo gpu07 && echo gpu08')
    assert discover({**SRUN, "SLURM_STEP_NODELIST": "gpu[07-09]"}).address == "gpu07"


@pytest.mark.parametrize("script", [None, "exit 1"])
def test_an_unreadable_list_reports_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        _install_scontrol(tmp_path, monkeypatch, script)
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        discover({**SRUN, "SLURM_STEP_NODELIST": "gpu[07-09]"})


def test_mpirun_with_an_address_needs_no_mpi_library() -> None:
    world = discover({**MPIRUN, "MASTER_ADDR": "node1", "MASTER_PORT": "1234"})
    assert world == World(1, 2, 1, 2, "node1", 1234)


def test_mpirun_within_a_slurm_step_counts() -> None:
    env = {**SRUN, **MPIRUN, "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "MASTER_ADDR": "node1"}
    assert (discover(env).rank, discover(env).size) == (1, 2)


def test_mpich() -> None:
    env = {
        "PMI_RANK": "3",
        "PMI_SIZE": "4",
        "MPI_LOCALRANKID": "1",
        "MPI_LOCALNRANKS": "2",
        "MASTER_ADDR": "node1",
    }
    assert discover(env) == World(3, 4, 1, 2, "node1", 29500)


def _fake_mpi(monkeypatch: pytest.MonkeyPatch, rank: int, told: list[object]) -> None:
    """An MPI library of one function: what rank 0 says, all hear."""

    def bcast(value: object, root: int) -> object:
        if value is not None:
            told.append(value)
        return told[-1]

    package, mpi = ModuleType("mpi4py"), ModuleType("mpi4py.MPI")

    def gather(value: object, root: int) -> list[object] | None:
        return [value, value] if rank == 0 else None

    world = SimpleNamespace(Get_size=lambda: 2, gather=gather, bcast=bcast)
    vars(mpi)["COMM_WORLD"], vars(package)["MPI"] = world, mpi
    monkeypatch.setitem(sys.modules, "mpi4py", package)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", mpi)


def test_mpirun_agrees_on_a_meeting_point(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    worlds = []
    for rank in ("0", "1"):
        _fake_mpi(monkeypatch, int(rank), told)
        worlds.append(discover({**MPIRUN, "OMPI_COMM_WORLD_RANK": rank}))
    assert worlds[0].port == worlds[1].port > 0
    assert worlds[0].address == worlds[1].address == "127.0.0.1"


def test_all_ranks_hear_that_a_name_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "no.such.host.invalid")
    told: list[object] = []
    for rank in ("0", "1"):
        _fake_mpi(monkeypatch, int(rank), told)
        env = {**MPIRUN, "OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
        with pytest.raises(UserError, match=r"own name 'no\.such\.host\.invalid' .*MASTER_ADDR"):
            discover(env)


def test_mpi4py_with_the_library_of_another_mpirun(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_mpi(monkeypatch, 0, [])
    vars(sys.modules["mpi4py.MPI"])["Get_library_version"] = lambda: "MPICH Version: 4.0\nmore"
    with pytest.raises(UserError, match=r"started 4 .* counts 2: .* MPICH Version: 4.0, which"):
        discover({**MPIRUN, "OMPI_COMM_WORLD_SIZE": "4"})


def test_mpirun_without_an_mpi_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(UserError, match="mpi4py cannot load MPI .* set MASTER_ADDR"):
        discover(MPIRUN)


TORCH = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "node1"}
CONTRADICTIONS = [
    ({"RANK": "2", "WORLD_SIZE": "2"}, "rank 2 does not fit a world of 2"),
    ({**SRUN, "SLURM_NTASKS": "4"}, "rank 5 does not fit a world of 4"),
    ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE is not set"),
    ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK='one' is not a number"),
    ({"RANK": "\N{SUPERSCRIPT TWO}", "WORLD_SIZE": "2"}, "is not a number"),
    ({"RANK": "9" * 5000, "WORLD_SIZE": "2"}, "is not a number"),
    ({**TORCH, "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
    ({**TORCH, "MASTER_PORT": "0"}, "MASTER_PORT=0 is no port"),
    ({"RANK": "0"}, "WORLD_SIZE is not set, although RANK=0 is"),
    ({"WORLD_SIZE": "4", "MASTER_ADDR": "a"}, "RANK is not set, although WORLD_SIZE=4 is"),
    ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set, although WORLD_SIZE=2"),
    ({**TORCH, "LOCAL_RANK": "2", "LOCAL_SIZE": "2"}, "LOCAL_RANK=2, but LOCAL_SIZE=2"),
    ({**SRUN, **TORCH}, "WORLD_SIZE=2, but SLURM_NTASKS=8: srun has started 8"),
    ({**SRUN, **TORCH, "WORLD_SIZE": "8"}, "RANK=0, but SLURM_PROCID=5"),
    ({**SRUN, "WORLD_SIZE": "4"}, "WORLD_SIZE=4, but SLURM_NTASKS=8: srun .*unset WORLD_SIZE"),
    ({**MPIRUN, "WORLD_SIZE": "4"}, "WORLD_SIZE=4, but OMPI_COMM_WORLD_SIZE=2: mpirun"),
    ({**MPIRUN, "RANK": "0"}, "RANK=0, but OMPI_COMM_WORLD_RANK=1"),
]


@pytest.mark.parametrize(("env", "message"), CONTRADICTIONS)
def test_contradictions_are_reported(env: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        discover(env)


def test_variables_that_agree_are_no_contradiction() -> None:
    """A script around `mpirun` may set torch's variables, too."""
    torch_too = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node1", "LOCAL_RANK": "1"}
    assert discover({**MPIRUN, **torch_too}).rank == 1
    assert discover({**MPIRUN, "WORLD_SIZE": "2", "MASTER_ADDR": "node1"}).rank == 1
    assert discover({"WORLD_SIZE": "1"}) == World()


def test_ranks_that_are_started_by_hand_in_a_shell_of_srun() -> None:
    shell = {**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    assert discover({**shell, **TORCH, "RANK": "1"}).size == 2


def test_an_interactive_step_of_a_larger_allocation_is_one_process() -> None:
    step = {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert discover({**SRUN, **step}).size == 1


@pytest.mark.parametrize(("node", "tasks"), [("0", 4), ("1", 4), ("2", 3)])
def test_srun_with_another_number_of_tasks_on_the_last_node(node: str, tasks: int) -> None:
    step = {"SLURM_STEP_TASKS_PER_NODE": "4(x2),3", "SLURM_NODEID": node}
    assert discover({**SRUN, **step}).local_size == tasks


def test_mpich_within_a_slurm_job_counts() -> None:
    """It starts a process per node with `srun`, and that the ranks."""
    hydra = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
    world = discover({**SRUN, **hydra, "SLURM_PROCID": "1", "MASTER_ADDR": "alpha"})
    assert (world.rank, world.size, world.local_size) == (3, 4, 2)


def test_srun_with_an_mpi_plugin_is_srun() -> None:
    assert discover({**SRUN, "PMI_RANK": "5", "PMI_SIZE": "8"}).local_rank == 1


def test_collectives_of_one_process() -> None:
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.any_rank(True) and not distributed.any_rank(False)
    assert distributed.gather_objects("mine") == ["mine"]
    assert distributed.broadcast_object("mine") == "mine"
    assert distributed.sum_over_ranks(torch.ones(2)).tolist() == [1.0, 1.0]
    distributed.barrier()
    with pytest.raises(UserError, match="mine"), distributed.shared_errors():
        raise UserError("mine")


def test_a_defect_is_not_taken_for_a_mistake_of_the_user() -> None:
    with pytest.raises(KeyError), distributed.shared_errors():
        raise KeyError("a defect")


def test_a_free_port_can_be_listened_on() -> None:
    assert 1024 <= distributed.free_port() < 65536


@pytest.mark.parametrize(("choice", "enabled"), [(None, False), ("0", True), ("1", True)])
def test_cudnn_attention_is_left_out_unless_the_user_chose(
    monkeypatch: pytest.MonkeyPatch, choice: str | None, enabled: bool
) -> None:
    monkeypatch.delenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", raising=False)
    if choice is not None:
        monkeypatch.setenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", choice)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        avoid_cudnn_attention()
        assert torch.backends.cuda.cudnn_sdp_enabled() is enabled
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize(
    ("variable", "allowed"),
    [(None, True), ("NVIDIA_TF32_OVERRIDE", False), ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", False)],
)
def test_tf32_is_allowed_unless_the_user_chose(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, allowed: bool
) -> None:
    for name in ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)
    if variable is not None:
        monkeypatch.setenv(variable, "0")
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        matmul.allow_tf32 = False
        allow_tf32()
        assert matmul.allow_tf32 is allowed
        with full_fp32():
            assert not matmul.allow_tf32
        assert matmul.allow_tf32 is allowed
        on_gpu = number_format("fp32", torch.device("cuda"))
        assert on_gpu == ("fp32 with products in TF32" if allowed else "fp32")
        assert number_format("bf16", torch.device("cuda")) == "bf16"
        assert number_format("fp32", torch.device("cpu")) == "fp32"
    finally:
        matmul.allow_tf32 = before


def test_a_group_leaves_the_environment_as_it_was(monkeypatch):
    """A process that this one starts later has a launcher of its own."""
    monkeypatch.setenv("MASTER_PORT", "29111")
    distributed.import_deepspeed()  # sets variables of its own, once in a process
    before = dict(os.environ)
    distributed.init(World())
    assert os.environ["RANK"] == "0"
    distributed.shutdown()
    assert dict(os.environ) == before
