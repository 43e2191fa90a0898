"""Work of the first rank that other ranks of `mpirun` share, over mpi4py.

Rank 0 runs the command; the others wait and call the functions that it sends. So a command needs no
code of its own for MPI: whatever goes through `map_in_order` is done by all ranks.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from ds_seq.data.mpi_watch import RankWatch, find_mpi
from ds_seq.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
State = TypeVar("State")

_AHEAD = 2  # items that another rank has been sent and not returned
_SHORTEST, _LONGEST = 1e-4, 2e-2  # seconds between two looks for messages
_GRACE = 10.0  # seconds in which other ranks end what they are doing after an error


class Team:
    """The ranks of `mpirun`, as rank 0 sees them.

    Args:
        comm: mpi4py's communicator of all ranks.
    """

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.others = range(1, comm.Get_size())
        self._sent: list[Any] = []  # requests, whose buffers must live until they are done
        self._serial = 0  # of the current map; results of an abandoned one are not its own

    def map(
        self,
        function: Callable[[State, Item], Result],
        state: State,
        items: Iterable[Item],
        prepare: Callable[[State], None] | None = None,
    ) -> Iterator[Result]:
        """Yield `function(state, item)` for every item, in order; see `map_in_order`.

        This rank takes an item itself when the others have enough of them.

        Args:
            function: function at the top level of a module, so that it can be sent.
            state: object that every call needs; it is sent once.
            items: items, read lazily in this process.
            prepare: called with the state first, in each process.
        """
        self._serial += 1
        for rank in self.others:
            self.send(rank, ("state", self._serial, function, state, prepare))
        if prepare is not None:
            prepare(state)
        work = _Work(self, self._serial, items)
        pause = _SHORTEST
        while True:
            is_idle = not work.deal()
            is_idle = not work.collect() and is_idle
            while work.done in work.results:
                yield work.results.pop(work.done)
                work.done += 1
                is_idle = False
            if work.is_over and work.done == work.taken:
                return
            if not is_idle:
                pause = _SHORTEST
            elif (entry := work.take()) is not None:
                work.results[entry[0]] = function(state, entry[1])
            else:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST)

    def send(self, rank: int, message: Any) -> None:
        """Send a message without waiting for its receiver."""
        self._sent = [request for request in self._sent if not request.Test()]
        self._sent.append(self._comm.isend(message, rank))

    def received(self) -> Iterator[tuple[int, Any]]:
        """Yield the messages that have arrived, and their ranks."""
        for rank in self.others:
            while self._comm.iprobe(rank):
                yield rank, self._comm.recv(source=rank)

    def close(self, grace: float | None = None) -> bool:
        """Let the other ranks end; return whether they have all said so within `grace` seconds."""
        for rank in self.others:
            self.send(rank, ("stop", 0, None, None))
        left = set(self.others)
        started = time.monotonic()
        while left:
            for rank, (kind, *_) in self.received():
                if kind == "bye":
                    left.discard(rank)
            if grace is not None and time.monotonic() - started > grace:
                return False
            time.sleep(_SHORTEST)
        return True


class _Work:
    """The items of one map: those dealt out, and the results that have come back.

    Attributes:
        taken: number of items taken from the input.
        done: number of results returned.
        results: other results, by number.
        is_over: whether the input has ended.
    """

    def __init__(self, ranks: Team, serial: int, items: Iterable[Any]) -> None:
        self._ranks = ranks
        self._serial = serial
        self._items = enumerate(items)
        self._load = dict.fromkeys(ranks.others, 0)
        self.taken = self.done = 0
        self.results: dict[int, Any] = {}
        self.is_over = False

    def take(self) -> tuple[int, Any] | None:
        """Return the next item; None at the end, or if too many results are out."""
        if self.is_over or self.taken - self.done >= (1 + _AHEAD) * (1 + len(self._load)):
            return None
        entry = next(self._items, None)
        self.is_over = entry is None
        self.taken += not self.is_over
        return entry

    def deal(self) -> bool:
        """Send items to ranks that have too few; return whether there were any."""
        found = False
        for rank, load in self._load.items():
            for _ in range(load, _AHEAD):
                if (entry := self.take()) is None:
                    return found
                self._ranks.send(rank, ("item", self._serial, *entry))
                self._load[rank] += 1
                found = True
        return found

    def collect(self) -> bool:
        """Store the results that have arrived; return whether there were any.

        Raises:
            UserError: a function has raised it.
        """
        found = False
        for rank, (kind, serial, index, value) in self._ranks.received():
            if serial != self._serial:
                continue
            if kind == "error":
                raise value
            self._load[rank] -= 1
            self.results[index] = value
            found = True
        return found


_team: ContextVar[Team | None] = ContextVar("team", default=None)


def current_team() -> Team | None:
    """Return the other ranks if they wait for work, see `team`."""
    return _team.get()


@contextmanager
def team() -> Iterator[bool]:
    """Share the work of the block with the other ranks of `mpirun`, if there are any.

    A rank that is killed, or gives no sign of life, ends all of them.

    Yields:
        True on rank 0 and without `mpirun`. False on other ranks, after they have done their share:
        there is nothing left to do.

    Raises:
        UserError: `mpirun` has started this process, but mpi4py cannot be loaded, or sees another
            number of processes.
    """
    mpi = find_mpi(os.environ)
    if mpi is None:
        yield True
        return
    RankWatch(mpi)
    comm = mpi.COMM_WORLD
    if comm.Get_rank() > 0:
        _serve(comm)
        yield False
        return
    ranks = Team(comm)
    token = _team.set(ranks)
    try:
        yield True
    except Exception as error:
        if not ranks.close(_GRACE):
            if isinstance(error, UserError):
                print(f"ds-seq: error: {error}", file=sys.stderr, flush=True)
            else:
                traceback.print_exc()
            comm.Abort(EXIT_USER_ERROR)
        raise
    except BaseException as error:  # a signal: the other ranks may have had it, too
        code = error.code if isinstance(error, SystemExit) else None
        comm.Abort(code if isinstance(code, int) else EXIT_INTERRUPTED)
        raise
    else:
        ranks.close()
    finally:
        _team.reset(token)


def _serve(comm: Any) -> None:
    """Call what rank 0 sends until it says stop."""
    serial, function, state = 0, None, None
    waiting: list[tuple[int, Any]] = []
    sent: list[Any] = []
    pause = _SHORTEST
    while True:
        # all messages first: an item is not worth doing if the map has been given up
        while comm.iprobe(0):
            pause = _SHORTEST
            kind, number, *rest = comm.recv(source=0)
            if kind == "state":
                serial, (function, state, prepare) = number, rest
                waiting.clear()
                if prepare is not None and (error := _attempt(comm, prepare, state)[1]) is not None:
                    sent.append(comm.isend(("error", serial, 0, error), 0))
            elif kind == "item":
                waiting.append((rest[0], rest[1]))
            else:
                sent.append(comm.isend(("bye", 0, None, None), 0))
                for request in sent:
                    request.wait()
                return
        sent = [request for request in sent if not request.Test()]
        if not waiting or function is None:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
            continue
        index, item = waiting.pop(0)
        result, error = _attempt(comm, function, state, item)
        answer = ("result", result) if error is None else ("error", error)
        sent.append(comm.isend((answer[0], serial, index, answer[1]), 0))


def _attempt(
    comm: Any, function: Callable[..., Any], *arguments: Any
) -> tuple[Any, Exception | None]:
    """Return what a function returns, or the error that is sent in place of it."""
    try:
        return function(*arguments), None
    except UserError as error:
        return None, error
    except Exception:
        return None, RuntimeError(f"on rank {comm.Get_rank()}:\n{traceback.format_exc()}")
