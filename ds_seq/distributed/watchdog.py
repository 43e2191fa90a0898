"""End a rank that hangs, or that waits for one that hangs or has died.

A thread of each rank looks every few seconds whether the rank makes progress (`ds_seq.activity`)
and what the others say of themselves (`ds_seq.distributed.sign_of_life`). It ends the process when

- the rank has made no progress for the limit, and is not waiting for others in a collective;
- it waits for others, and no rank of the run has made progress for the limit;
- another rank gives no sign of life for the limit: it was stopped or killed, or its host is lost;
- another rank has failed, and this one has not ended by itself some seconds later.

A rank that waits while another works, such as one that writes a checkpoint, goes on waiting. Phases
that may take long have `LONG` times the limit. The process first prints the stacks of all its
threads and its last collective; its exit code is `EXIT_RANK_LOST`. The thread needs the interpreter
lock. Should the main thread keep that for the limit, a timer of `faulthandler`, which needs none,
prints the stacks and, if there are other ranks, ends the process with exit code 1.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

from ds_seq import launcher
from ds_seq.activity import CURRENT, HANG_SECONDS, mark, start
from ds_seq.distributed.flight_recorder import RECORDER
from ds_seq.distributed.heartbeat import Heartbeat
from ds_seq.distributed.launch import World
from ds_seq.distributed.sign_of_life import SignsOfLife, Verdict
from ds_seq.errors import EXIT_RANK_LOST, RankLost, UserError
from ds_seq.files import heartbeats

LONG = 4.0
"""How many times the limit a phase that may take long has."""
_SHARE = 0.75  # of the limit, after which a rank judges: others then end within the limit
_LATER = 1.1  # a rank that waits lets the one that does not, and knows why, speak first
_TURNS, _SHORTEST_TURN, _LONGEST_TURN = 25, 0.1, 5.0
_STDERR = 2
# A forked child lacks the thread of a timer that its parent has set, and would wait for it forever.
os.register_at_fork(before=faulthandler.cancel_dump_traceback_later)
_watches = 0  # of this process: states of an earlier one are not those of a later one


class Watchdog:
    """Watches this rank until `stop`.

    Args:
        world: this rank and the number of ranks.
        store: a store that all ranks share; None: nothing is known of the others.
        seconds: the limit; None: the process is never ended.
        heartbeat: says the limit to a supervisor.
    """

    def __init__(
        self, world: World, store: dist.Store | None, seconds: float | None, heartbeat: Heartbeat
    ) -> None:
        self._world, self._store, self._heartbeat = world, store, heartbeat
        self._seconds = seconds
        self._signs: SignsOfLife | None = None
        self._forgiven = time.monotonic()
        self._judged: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._start()

    def limit(self, seconds: float | None) -> None:
        """Set another limit, the same on all ranks. A collective in that all have to do it."""
        if seconds != self._seconds:
            self._heartbeat.seconds = seconds
            self.stop()
            self._seconds = seconds
            self._start()

    def stop(self, why: Verdict | None = None) -> None:
        """End the watch; `why` ends the other ranks, too."""
        self._stop.set()
        if self._signs is not None:
            self._signs.leave(why)
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
        self._signs = self._thread = None

    def _start(self) -> None:
        global _watches
        _watches += 1
        if self._seconds is None:
            return
        mark()
        if dist.is_initialized():
            _set_timeout(self._seconds)
        self._limit = _SHARE * self._seconds
        self._turn = min(max(self._seconds / _TURNS, _SHORTEST_TURN), _LONGEST_TURN)
        if self._store is not None:
            # the store of torchrun outlives the processes that it starts again
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
            of_this_watch = dist.PrefixStore(f"ds_seq/watch/{attempt}/{_watches}", self._store)
            self._signs = SignsOfLife(of_this_watch, self._world, self._limit, self._turn)
        self._stop = threading.Event()
        self._set_timer()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._watch()
        except Exception:  # a defect of the watchdog must not end a run that is well
            faulthandler.cancel_dump_traceback_later()
            raise

    def _watch(self) -> None:
        seen = time.monotonic()
        while not self._stop.wait(self._turn):
            self._set_timer()
            now = time.monotonic()
            if now - seen > 0.5 * self._limit:  # this process was stopped, or starved
                self._forgive()
            seen = now
            why = self._judge(now)
            if why is not None and not self._stop.is_set():
                self._end(why)

    def _set_timer(self) -> None:
        """Set the timer that needs no interpreter lock; it goes off if the thread cannot run."""
        assert self._seconds is not None
        others = self._world.size > 1  # if it was stopped and continued they have ended by now
        faulthandler.dump_traceback_later(self._seconds, exit=others, file=_STDERR)

    def _forgive(self) -> None:
        self._forgiven = time.monotonic()
        if self._signs is not None:
            self._signs.forgive()

    def _judge(self, now: float) -> str | None:
        """Return why this process has to end; None if it need not."""
        signs = self._signs
        if signs is not None:
            if signs.verdict is not None:
                self._judged = now if self._judged is None else self._judged
                return signs.verdict.why if now - self._judged >= signs.verdict.grace else None
            if now - signs.heard > self._limit:
                return (
                    f"rank 0, or the launcher, has given no sign of life for "
                    f"{now - signs.heard:.1f} s: it was stopped or killed, or its host is lost"
                )
        idle, limit = now - max(CURRENT.marked, self._forgiven), self._limit
        is_long = CURRENT.may_take_long
        if signs is not None and _may_wait():
            idle, limit = min(idle, now - signs.progressed), _LATER * limit
            is_long = is_long or signs.may_take_long
        if idle < limit * (LONG if is_long else 1.0):
            return None
        return f"no progress for {idle:.1f} s in {CURRENT.phase} after update {CURRENT.update}"

    def _end(self, why: str) -> None:
        """Print what the process is doing, tell the others, and end it."""
        faulthandler.dump_traceback_later(10.0, exit=True, file=_STDERR)  # if that blocks
        rank = self._world.rank
        _print(
            f"ds-seq: rank {rank}: {why}\n"
            f"ds-seq: rank {rank}: last collective: {RECORDER.describe()}\n"
            f"ds-seq: rank {rank}: ends with exit code {EXIT_RANK_LOST}; its threads:\n"
        )
        faulthandler.dump_traceback(_STDERR, all_threads=True)
        signs = self._signs
        if signs is not None and time.monotonic() - signs.heard < self._limit:
            if signs.verdict is None:
                signs.leave(Verdict(f"rank {rank}: {why}", 0.0))
            time.sleep(2 * self._turn + 0.2)  # let the others read it before they lose this rank
        heartbeats.write("end", {"code": EXIT_RANK_LOST})
        os._exit(EXIT_RANK_LOST)


def _may_wait() -> bool:
    """Return whether this rank may be waiting for others.

    Collectives of NCCL return before they are done, so it is not known where a rank waits for them.
    """
    return RECORDER.is_waiting or (dist.is_initialized() and dist.get_backend() == "nccl")


def _set_timeout(seconds: float) -> None:
    """Let collectives raise after `LONG` times the limit, should this thread not end the process.

    It is not the limit itself: a group does not know that a rank it waits for is at work.
    """
    timeout = timedelta(seconds=LONG * seconds)
    dist.distributed_c10d._set_pg_timeout(timeout)


def _print(text: str) -> None:
    """Write to standard error, whose Python object another thread may hold."""
    with suppress(OSError):
        os.write(_STDERR, text.encode(errors="replace"))


@contextmanager
def watching(
    world: World, store: dist.Store | None, seconds: float | None = HANG_SECONDS
) -> Iterator[Watchdog]:
    """Watch this rank for the duration of the block.

    Args:
        world: this rank and the number of ranks.
        store: a store that all ranks share; None: nothing is known of the others.
        seconds: the limit; None: the process is never ended.

    Raises:
        RankLost: a collective of the block has failed, because another rank has died.
    """
    start()
    heartbeat = Heartbeat(world, seconds)
    dog = Watchdog(world, store, seconds, heartbeat)
    RECORDER.install()
    try:
        yield dog
    except BaseException as error:
        dog.stop(_farewell(world, error, seconds))
        if isinstance(error, RuntimeError) and RECORDER.caused(error):
            launcher.end_if_lost()
            raise _lost(world) from error
        raise
    else:
        dog.stop()
    finally:
        RECORDER.remove()
        heartbeat.stop()


def _farewell(world: World, error: BaseException, seconds: float | None) -> Verdict:
    """Return what a rank that fails tells the others, which may be failing of the same cause."""
    name = "an error in the input" if isinstance(error, UserError) else type(error).__name__
    return Verdict(f"rank {world.rank} has failed ({name})", min(10.0, 0.1 * (seconds or 100.0)))


def _lost(world: World) -> RankLost:
    sys.stderr.flush()
    return RankLost(
        f"rank {world.rank}: a collective has failed, because another rank has died: "
        f"{RECORDER.describe()}"
    )
