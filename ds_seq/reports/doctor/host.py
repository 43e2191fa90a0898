"""Checks of one process and its host: versions, devices, limits, disk, names."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ds_seq.distributed import World
from ds_seq.names import Precision
from ds_seq.reports.doctor.findings import Finding, Status

_GIB = 2**30
_LEAST_SHM, _LEAST_DISK = 1.0, 10.0  # GiB
_LEAST_FILES = 4096
_WRITTEN = 32 << 20  # bytes
_LEAST_SPEED, _MOST_SYNC = 50.0, 0.05  # MB/s, seconds
_SYNCS = 10
_SIZE = {"cpu": 256, "cuda": 2048}  # rows of the matrices that are multiplied
_ROUNDING: dict[Precision, float] = {"fp32": 2.0**-8, "fp16": 2.0**-9, "bf16": 2.0**-6}
"""Largest error of a product, relative to its largest element; TF32 rounds like fp16."""
_TYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_PACKAGES = ("torch", "deepspeed", "numpy", "sentencepiece", "sacrebleu", "mpi4py")


def host_findings(world: World, folder: Path, precision: Precision | None) -> Iterator[Finding]:
    """Yield what this process finds on its own.

    Args:
        world: the place of the process.
        folder: folder in which runs are written; it need not exist.
        precision: number format of the training; None if it is not known.
    """
    yield _versions()
    yield from _libraries(world)
    yield from _gpus(world)
    yield from _precisions(world, precision)
    yield _threads(world)
    yield _open_files()
    yield _shared_memory()
    if world.local_rank == 0:  # others would measure how they disturb each other
        yield from _disk(folder)
    yield from _names(world)


def _versions() -> Finding:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    text = f"python {platform.python_version()}, {', '.join(found)}"
    missing = [each.removeprefix("no ") for each in found if each.startswith("no ")]
    if missing:
        return Finding("versions", "FAIL", text, f"pip install {' '.join(missing)}")
    return Finding("versions", "ok", text)


def _libraries(world: World) -> Iterator[Finding]:
    cuda = torch.version.cuda
    parts = [f"CUDA {cuda}" if cuda else "torch without CUDA"]
    if driver := _smi("driver_version"):
        parts.append(f"driver {driver[0]}")
    if world.device.type == "cuda" and torch.distributed.is_nccl_available():
        numbers = torch.cuda.nccl.version()
        parts.append(f"NCCL {'.'.join(map(str, numbers))}")
    parts.append(_mpi())
    text = ", ".join(parts)
    if driver and not torch.cuda.is_available():
        fix = "install the torch build for this driver, or unset CUDA_VISIBLE_DEVICES if it hides "
        yield Finding(
            "CUDA",
            "FAIL",
            f"{text}: torch sees no GPU",
            f"{fix}them",
        )
    else:
        yield Finding("CUDA", "ok", text)


def _mpi() -> str:
    program = shutil.which("mpirun")
    if program is None:
        return "no mpirun"
    lines = _output([program, "--version"]).splitlines()
    return lines[0].strip() if lines else "mpirun of unknown version"


def _smi(fields: str) -> list[str]:
    """Return a line for each GPU from nvidia-smi; empty without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    return _output([program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]).splitlines()


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _gpus(world: World) -> Iterator[Finding]:
    if world.device.type != "cuda":
        yield Finding("device", "ok", f"CPU, {platform.processor() or platform.machine()}")
        return
    properties = torch.cuda.get_device_properties(world.device)
    free, total = torch.cuda.mem_get_info(world.device)
    text = (
        f"{properties.name}, {total / _GIB:.0f} GiB ({free / _GIB:.0f} free), compute capability "
        f"{properties.major}.{properties.minor}"
    )
    clocks = [line.split(", ") for line in _smi("uuid,clocks.sm,clocks.max.sm")]
    for uuid, now, most in (fields for fields in clocks if len(fields) == 3):
        if str(properties.uuid) in uuid:
            text += f", {now} of {most} MHz"
    if free < 0.9 * total:
        fix = "another process uses it: see nvidia-smi, and end it or choose other GPUs"
        yield Finding("device", "warn", text, fix)
    else:
        yield Finding("device", "ok", text)


def _precisions(world: World, wanted: Precision | None) -> Iterator[Finding]:
    """Multiply matrices in each number format, and compare with float64."""
    size = _SIZE[world.device.type]
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(size, size, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    speeds: dict[Precision, float] = {}
    for name, dtype in _TYPES.items():
        error, speed = _product(a, b, exact, world.device, dtype)
        speeds[name] = speed
        numbers = (("error", error), ("TFLOP/s", speed / 1e12))
        status: Status = "ok"
        fix = ""
        if not error < _ROUNDING[name]:
            status = "FAIL" if name in (wanted, "fp32") else "warn"
            fix = f"set train.precision to another than {name} on this device"
        elif name == wanted and speed < 0.5 * speeds["fp32"]:
            status, fix = "warn", "set train.precision to fp32: it is faster here"
        yield Finding("precision", status, name, fix, numbers)


def _product(
    a: torch.Tensor, b: torch.Tensor, exact: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> tuple[float, float]:
    """Return the relative error of a product, infinite if it fails, and its FLOP/s."""
    try:
        left, right = a.to(device, dtype), b.to(device, dtype)
        result = (left @ right).double().cpu()
        best = min(_seconds(left, right) for _ in range(3))
    except RuntimeError:
        return float("inf"), 0.0
    error = float((result - exact).abs().max() / exact.abs().max())
    return error, 2.0 * len(a) ** 3 / best


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    began = time.perf_counter()
    product = left @ right
    if product.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _threads(world: World) -> Finding:
    cores = len(os.sched_getaffinity(0))
    threads = torch.get_num_threads() * world.local_size
    sharing = world.local_size
    if cores < (os.cpu_count() or 1):  # the launcher has given each process cores of its own
        threads, sharing = torch.get_num_threads(), 1
    text = f"{torch.get_num_threads()} per process, {threads} on {cores} core(s)"
    if world.device.type == "cpu" and threads > cores:
        fix = f"OMP_NUM_THREADS={max(1, cores // sharing)}"
        return Finding("threads", "warn", text, f"set {fix}, or start fewer processes")
    return Finding("threads", "ok", text)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft:,} (at most {hard:,})"
    if soft < _LEAST_FILES:
        fix = f"ulimit -n {min(hard, 65536)} in the job script, before the launcher"
        return Finding("open files", "warn", text, fix)
    return Finding("open files", "ok", text)


def _shared_memory() -> Finding:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return Finding("shared memory", "warn", "no /dev/shm", "mount it; NCCL needs it in a host")
    text = f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free"
    if usage.free < _LEAST_SHM * _GIB:
        fix = "start the container with more, such as docker run --shm-size 8g, or clear /dev/shm"
        return Finding("shared memory", "warn", text, fix)
    return Finding("shared memory", "ok", text)


def _disk(folder: Path) -> Iterator[Finding]:
    """Write a file as a checkpoint is written, and sync small ones."""
    place, fix = folder.absolute(), ""
    status: Status = "ok"
    while not place.is_dir():
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".ds_seq_doctor", dir=place) as scratch:
            path = Path(scratch) / "file"
            began = time.perf_counter()
            _write(path, os.urandom(1 << 20) * (_WRITTEN >> 20))
            speed = _WRITTEN / 1e6 / (time.perf_counter() - began)
            syncs = []
            for _ in range(_SYNCS):
                began = time.perf_counter()
                _write(path, b"x")
                syncs.append(time.perf_counter() - began)
    except OSError as error:
        text = f"{place}: cannot be written: {error.strerror or error}"
        yield Finding("disk", "FAIL", text, "give another run_dir, or ask for space and rights")
        return
    sync, free = statistics.median(syncs), shutil.disk_usage(place).free / _GIB
    numbers = (("MB/s", speed), ("fsync ms", 1000 * sync), ("GiB free", free))
    if free < _LEAST_DISK:
        status, fix = "warn", "free some space, or lower train.keep_last"
    elif speed < _LEAST_SPEED or sync > _MOST_SYNC:
        status, fix = "warn", "checkpoints will be slow; use a faster disk: run_dir"
    yield Finding("disk", status, str(place), fix, numbers)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _names(world: World) -> Iterator[Finding]:
    name = socket.gethostname()
    for host in dict.fromkeys((name, world.address)):
        try:
            address = socket.getaddrinfo(host, None)[0][4][0]
        except OSError as error:
            is_needed = host == world.address and world.size > 1
            yield Finding(
                "host names",
                "FAIL" if is_needed else "warn",
                f"{host} does not resolve: {error.strerror}",
                "add it to DNS or /etc/hosts, or set MASTER_ADDR to an address",
            )
        else:
            yield Finding("host names", "ok", f"{host} is {address}")
