"""A real SLURM of two nodes on this machine: munge, slurmctld and two slurmd, as root.

All files are in one folder, and every process of it ends with the block. The daemons run in a mount
namespace of their own, in which the names of the nodes are known, so that `/etc/hosts` stays as it
is. Debian and Ubuntu: `apt-get install slurm-wlm munge`.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from tests.ports import free_port
from tests.system.commands import Finished

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare")
NODES = ("n1", "n2")
# where SLURM looks for the library of PMIx; Debian has the file there under its long name only
_PMIX = Path("/usr/lib/x86_64-linux-gnu/pmix2/lib")
CORES = 4  # of a node, as SLURM counts; more than there are is no mistake here
_CONFIG = """\
ClusterName=ds_seq_test
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
# A job that is requeued waits until its old credential has expired.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmctldPort={ctld}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
TmpFS={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2
KillWait=20
SlurmdTimeout=45
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs={cores} State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs={cores} State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20 State=UP
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
"""


def why_not() -> str | None:
    """Return what this machine lacks for a cluster, or None."""
    missing = [name for name in PROGRAMS if _find(name) is None]
    if missing:
        return f"no {', '.join(missing)} (Debian, Ubuntu: apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "the daemons need root"


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class Cluster:
    """A running cluster, as `cluster` gives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._mounts: dict[Path, Path] = {}

    def start(self) -> None:
        """Start all daemons and wait until both nodes are idle."""
        for name in ("state", *NODES):
            (self.folder / name).mkdir()
        ports = {"ctld": free_port(), "n1": free_port(), "n2": free_port()}
        config = _CONFIG.format(folder=self.folder, host=socket.gethostname(), cores=CORES, **ports)
        (self.folder / "slurm.conf").write_text(config)
        hosts = "".join(f"127.0.0.1 {name}\n" for name in NODES)
        (self.folder / "hosts").write_text(Path("/etc/hosts").read_text() + hosts)
        self._mounts = {self.folder / "hosts": Path("/etc/hosts")}
        if (library := _PMIX / "libpmix.so.2").exists() and not (_PMIX / "libpmix.so").exists():
            shutil.copytree(_PMIX, self.folder / "pmix")
            shutil.copy(library, self.folder / "pmix" / "libpmix.so")
            self._mounts[self.folder / "pmix"] = _PMIX
        self._start_munge()
        self._daemon("slurmctld")
        for node in NODES:
            self.start_node(node)
        self.wait_for(self._is_idle, 60, "both nodes are idle")

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        os.chmod(self.folder, 0o755)  # munged insists
        files = {"socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{name}={self.folder}/munge.{end}" for name, end in files.items()]
        self._call([_find("munged") or "", "--force", f"--key-file={key}", *options])

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self._daemon("slurmd", "-N", node)

    def _daemon(self, program: str, *more: str) -> None:
        mounts = "".join(f"mount --bind {own} {theirs}; " for own, theirs in self._mounts.items())
        script = f'ulimit -n 4096; {mounts}exec "$@"'
        command = [_find(program) or "", *more, "-f", str(self.folder / "slurm.conf")]
        self._call(["unshare", "--mount", "sh", "-c", script, "sh", *command])

    def _is_idle(self) -> bool:
        return self.run("sinfo", "-h", "-N", "-o", "%T", "-p", "main").out.split() == ["idle"] * 2

    def _call(self, command: Sequence[str]) -> None:
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    def run(
        self,
        *command: str | Path,
        folder: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Finished:
        """Run a command of SLURM to its end."""
        done = subprocess.run(
            [str(word) for word in command],
            env={**self.environ, **(environ or {})},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def submit(
        self, *arguments: str | Path, folder: Path, environ: Mapping[str, str] | None = None
    ) -> int:
        """Submit a batch script from a folder; return the number of the job."""
        done = self.run("sbatch", "--parsable", *arguments, folder=folder, environ=environ)
        return int(done.check().out.split(";")[0])

    def show(self, job: int | str) -> dict[str, str]:
        """What SLURM knows of a job, or of a task `JOB_N` of an array."""
        text = self.run("scontrol", "show", "job", str(job)).check().out
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def state(self, job: int | str) -> str:
        """State of a job, such as `RUNNING`."""
        return self.show(job)["JobState"]

    def wait(self, job: int | str, timeout: float) -> str:
        """Wait until a job has ended for good; return its state."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        self.wait_for(lambda: self.state(job) in ended, timeout, f"job {job} ends")
        return self.state(job)

    def wait_for(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait until something holds.

        Raises:
            AssertionError: the time is up; holds the ends of all logs.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout:g} s in vain until {what}\n{self._logs()}")
            time.sleep(0.5)

    def cancel_all(self) -> None:
        """Cancel all jobs and wait until they are gone."""
        self.run("scancel", "--user", "root")
        self.wait_for(lambda: not self.run("squeue", "-h").out.strip(), 60, "no job is left")

    def lose_node(self, node: str) -> None:
        """Kill the daemon of a node and all that it has started, as a power cut would."""
        pid = int((self.folder / f"{node}.pid").read_text())
        steps = [
            process
            for process in psutil.process_iter(["name", "environ", "cmdline"])
            if (process.info["environ"] or {}).get("SLURMD_NODENAME") == node
            or ("slurmstepd" in (process.info["name"] or "") and self._belongs(process, node))
        ]
        for process in [psutil.Process(pid), *steps]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)

    def _belongs(self, process: psutil.Process, node: str) -> bool:
        with suppress(psutil.NoSuchProcess):
            family = process.children(recursive=True)
            return any(child.environ().get("SLURMD_NODENAME") == node for child in family)
        return False

    def stop(self) -> None:
        """End all jobs and daemons."""
        with suppress(subprocess.TimeoutExpired, OSError):
            self.run("scancel", "--user", "root")
            self.run("scontrol", "shutdown")
        mine = str(self.folder)
        for process in psutil.process_iter(["cmdline", "environ", "cwd"]):
            info = process.info
            words, config = (
                " ".join(info["cmdline"] or []),
                (info["environ"] or {}).get("SLURM_CONF"),
            )
            is_daemon = re.match(r"\S*(munged|slurmctld|slurmd)\b", words) and mine in words
            is_step = words.startswith("slurmstepd") and (info["cwd"] or "").startswith(mine)
            if (
                is_daemon
                or is_step
                or (config == f"{mine}/slurm.conf" and process.pid != os.getpid())
            ):
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def _logs(self) -> str:
        found = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in found)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Yield a running cluster whose files are in a folder."""
    made = Cluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
