"""Two hosts on this machine: network namespaces with a cable between them and an sshd in each.

Each has its own name, address, and `/etc/hosts`, in which, as on Debian, its own name is 127.0.1.1.
Files and users are those of the machine. Needs root and, on Debian or Ubuntu, `apt-get install
openssh-server pdsh iproute2`.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]

PROGRAMS = ("ip", "unshare", "nsenter", "ssh", "ssh-keygen", "sshd", "pdsh")
_SSHD = """\
Port 22
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PidFile {folder}/{name}.pid
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
MaxStartups 100
"""


def why_not() -> str | None:
    """Return what this machine lacks for two hosts, or None."""
    if missing := [name for name in PROGRAMS if _find(name) is None]:
        return (
            f"no {', '.join(missing)} (Debian, Ubuntu: apt-get install openssh-server pdsh "
            "iproute2)"
        )
    if os.geteuid() != 0:
        return "namespaces need root"
    works = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True
    )
    return None if works.returncode == 0 else "the kernel allows no namespaces here"


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class Host:
    """A host that is running."""

    def __init__(self, name: str, address: str, pid: int) -> None:
        self.name, self.address, self._pid = name, address, pid

    def command(self, *command: str | Path) -> list[str]:
        """Return a command that runs another one on this host."""
        enter = ["nsenter", "--target", str(self._pid), "--net", "--uts", "--mount", "--pid"]
        return [*enter, f"--wd={Path.cwd()}", *map(str, command)]


class Hosts:
    """Two hosts, as `two_hosts` gives them.

    Attributes:
        first, second: the hosts.
        hostfile: a file with a slot on each.
        ssh: options with which `ssh` gets from one to the other.
    """

    def __init__(self, folder: Path, hosts: Sequence[Host]) -> None:
        self.first, self.second = hosts
        self.hostfile = folder / "hostfile"
        self.hostfile.write_text("".join(f"{host.name} slots=1\n" for host in hosts))
        known = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        self.ssh = f"-i {folder}/key {known}"


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Yield two hosts that know each other by name; all that they run ends with the block."""
    names = [f"ds{letter}{secrets.token_hex(2)}" for letter in "ab"]
    net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
    addresses = [f"{net}.{number}" for number in (1, 2)]
    for own in names:
        known = zip(addresses, names, strict=True)
        lines = [f"{'127.0.1.1' if name == own else address} {name}" for address, name in known]
        (folder / f"{own}.hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key"))
    Path("/run/sshd").mkdir(exist_ok=True)
    with ExitStack() as stack:
        pids = [stack.enter_context(_namespace(folder, name)) for name in names]
        ends = [f"{name}0" for name in names]
        device = "eth0"  # on both, which DeepSpeed expects for Open MPI
        _run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        hosts = []
        for name, address, pid, end in zip(names, addresses, pids, ends, strict=True):
            _run("ip", "link", "set", end, "netns", str(pid), "name", device)
            host = Host(name, address, pid)
            _run(*host.command("ip", "address", "add", f"{address}/24", "dev", device))
            for each in ("lo", device):
                _run(*host.command("ip", "link", "set", each, "up"))
            (folder / f"{name}.conf").write_text(_SSHD.format(folder=folder, name=name))
            _run(*host.command(_find("sshd") or "", "-f", folder / f"{name}.conf"))
            hosts.append(host)
        found = Hosts(folder, hosts)
        for host in hosts:
            _run(*hosts[0].command("ssh", *shlex.split(found.ssh), host.name, "true"))
        yield found


@contextmanager
def _namespace(folder: Path, name: str) -> Iterator[int]:
    """Start a process that holds namespaces of its own open.

    It is the first in a namespace of processes, so the kernel ends with it all that the host runs,
    and nothing else.

    Yields:
        Its number on this machine.
    """
    ready = folder / f"{name}.ready"
    hosts = f"mount --bind {folder}/{name}.hosts /etc/hosts"
    script = f"set -e; {hosts}; hostname {name}; echo >{ready}; exec sleep 100000"
    spaces = ("--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    holder = subprocess.Popen(["unshare", *spaces, "sh", "-c", script], stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not ready.exists():
            assert time.monotonic() < deadline and holder.poll() is None, "no namespace"
            time.sleep(0.02)
        (first,) = psutil.Process(holder.pid).children()
        yield first.pid
    finally:
        holder.kill()
        holder.wait()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
