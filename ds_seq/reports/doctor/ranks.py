"""Checks between ranks: who answers, whether collectives are right, how fast they are, clocks.

Before each step, every rank puts its name down in the store where the ranks have met. Only when all
have done so, the collective begins, so a rank that does not answer is named instead of waited for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ds_seq.distributed import World
from ds_seq.reports.doctor.findings import Finding, shown_ranks

_KIB = 1024
SIZES = {"cpu": (_KIB, _KIB**2, 8 * _KIB**2), "cuda": (_KIB, _KIB**2, 64 * _KIB**2)}
"""Bytes that each rank sends, by kind of device."""
_MOST_SECONDS, _MOST_TIMES = 0.3, 20  # per size of message
_ROUNDS = 5
_APART = (0.5, 60.0)  # seconds between clocks: warn, FAIL


class NoAnswer(Exception):
    """Some ranks have not come to a step in time; the argument names them and the step."""


class RankChecks:
    """The checks of one rank; all ranks call the same methods in the same order.

    Args:
        world: the place of this process; there are several.
        store: where the ranks have met.
        patience: seconds to wait for ranks before each step.
        findings: what this process has found on its own.
    """

    def __init__(
        self, world: World, store: dist.Store, patience: float, findings: Sequence[Finding]
    ) -> None:
        self._world, self._patience = world, timedelta(seconds=patience)
        self._store = dist.PrefixStore("doctor", store)
        self._step = 0
        self._store.set(f"findings/{world.rank}", json.dumps(findings))

    def answers(self) -> dict[int, list[Finding]]:
        """Return the findings of all ranks that have begun, by rank; on rank 0."""
        answers = {}
        for rank in range(self._world.size):
            if self._store.check([f"findings/{rank}"]):
                content = self._store.get(f"findings/{rank}")
                answers[rank] = [Finding.of(each) for each in json.loads(content)]
        return answers

    def meet(self, what: str) -> None:
        """Wait until all ranks have come to the next step.

        Raises:
            NoAnswer: some have not; names them.
        """
        self._step += 1
        try:
            self._meet(what)
        except dist.DistNetworkError:  # the store was rank 0's
            raise NoAnswer(f"no answer from rank 0 before {what}") from None

    def _meet(self, what: str) -> None:
        keys = [f"{self._step}/{rank}" for rank in range(self._world.size)]
        self._store.set(keys[self._world.rank], "here")
        try:
            self._store.wait(keys, self._patience)
        except dist.DistStoreError:
            silent = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
            raise NoAnswer(f"no answer from {shown_ranks(silent)} before {what}") from None

    def clocks(self) -> Finding:
        """Compare the clocks of all ranks.

        Raises:
            NoAnswer: some ranks do not take part.
        """
        self.meet("the clocks are compared")
        size, best = self._world.size, float("inf")
        for number in range(_ROUNDS):  # the round in which ranks were woken most at once counts
            self._store.set(f"clock/{number}/{self._world.rank}", "here")
            keys = [f"clock/{number}/{rank}" for rank in range(size)]
            self._store.wait(keys, self._patience)
            now = time.time()
            self._store.set(f"time/{number}/{self._world.rank}", repr(now))
            keys = [f"time/{number}/{rank}" for rank in range(size)]
            self._store.wait(keys, self._patience)
            times = [float(self._store.get(key)) for key in keys]
            best = min(best, max(times) - min(times))
        text = f"within {1000 * best:,.1f} ms of each other, as far as {_ROUNDS} meetings can tell"
        fix = "synchronize the clocks of the hosts (chrony, ntpd): locks and logs rely on them"
        warn, fail = _APART
        status = "ok" if best < warn else "warn" if best < fail else "FAIL"
        return Finding("clocks", status, text, "" if status == "ok" else fix)  # type: ignore[arg-type]

    def collectives(self, backend: str, device: torch.device) -> list[Finding]:
        """Check and time the collectives of a backend.

        Raises:
            NoAnswer: some ranks do not take part.
        """
        self.meet(f"a group of {backend} is built")
        group = dist.new_group(backend=backend, timeout=self._patience)
        found = []
        for name, run in _COLLECTIVES.items():
            self.meet(f"{backend} {name}")
            try:
                found.append(self._collective(f"{backend} {name}", run, device, group))
            except RuntimeError as error:  # a rank that has stopped in the middle
                self.meet(f"the end of {backend} {name}")
                text, fix = str(error).splitlines()[0][:200], "see the messages of all ranks"
                return [*found, Finding(f"{backend} {name}", "FAIL", text, fix)]
        return found

    def _collective(
        self, name: str, run: _Run, device: torch.device, group: dist.ProcessGroup
    ) -> Finding:
        size, parts, wrong = self._world.size, [], 0
        for num_bytes in SIZES[device.type]:
            length = max(1, num_bytes // 4 // size) * size
            received, expected = run(self._world.rank, size, length, device, group)
            wrong += int((received.cpu() != expected).any())
            times: list[float] = []
            while len(times) < _MOST_TIMES and sum(times) < _MOST_SECONDS:
                began = time.perf_counter()
                run(self._world.rank, size, length, device, group)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                spent = torch.tensor(time.perf_counter() - began, device=device)
                dist.all_reduce(spent, dist.ReduceOp.MAX, group=group)  # all stop together
                times.append(float(spent))
            seconds = min(times)
            speed = f" ({4 * length / seconds / 1e9:.2f} GB/s)" if num_bytes > _KIB else ""
            parts.append(f"{_size(4 * length)} {1000 * seconds:.2f} ms{speed}")
        flag = torch.tensor(float(wrong), device=device)
        dist.all_reduce(flag, group=group)
        if flag.item():
            fix = "results are wrong: check memory, cables and drivers of the hosts; do not train"
            return Finding(name, "FAIL", f"wrong results; {', '.join(parts)}", fix)
        return Finding(name, "ok", ", ".join(parts))


_Run = Callable[[int, int, int, torch.device, dist.ProcessGroup], tuple[Tensor, Tensor]]
"""(rank, number of ranks, elements, device, group) -> result, what it should be (on the CPU)."""


def _all_reduce(
    rank: int, size: int, length: int, device: torch.device, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    values = _values(length, device) + rank
    dist.all_reduce(values, group=group)
    return values, size * _values(length) + size * (size - 1) / 2


def _all_gather(
    rank: int, size: int, length: int, device: torch.device, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    values = _values(length, device) + rank
    received = values.new_empty(size * length)
    dist.all_gather(list(received.chunk(size)), values, group=group)
    return received, torch.cat([_values(length) + other for other in range(size)])


def _all_to_all(
    rank: int, size: int, length: int, device: torch.device, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    share = length // size
    values = _values(share, device).repeat(size) + rank
    values += torch.arange(size, device=device).repeat_interleave(share) * size  # receiver
    received = torch.empty_like(values)
    dist.all_to_all_single(received, values, group=group)
    senders = torch.arange(size).repeat_interleave(share)
    return received, _values(share).repeat(size) + senders + rank * size


_COLLECTIVES: dict[str, _Run] = {
    "all-reduce": _all_reduce,
    "all-gather": _all_gather,
    "all-to-all": _all_to_all,
}


def _values(length: int, device: torch.device | str = "cpu") -> Tensor:
    """Return whole numbers, whose sums are exact."""
    return torch.arange(length, device=device).remainder(1000).float()


def _size(num_bytes: int) -> str:
    return f"{num_bytes >> 20} MiB" if num_bytes >= _KIB**2 else f"{num_bytes >> 10} KiB"
