"""Ranks tell each other through a store that they are alive, and when one of them has to end.

Each rank writes its state every few seconds. Rank 0 reads all of them and writes one summary, which
the others read: two small messages per rank and turn, for any number of ranks. The store is the one
at which the ranks met; it is used by one thread, because a store that does not answer blocks it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch.distributed as dist

from ds_seq import launcher
from ds_seq.activity import CURRENT
from ds_seq.distributed.launch import World
from ds_seq.files import host
from ds_seq.files.process import this_process

_SUMMARY = "summary"
_LEAVING = 2.0  # seconds that a rank which leaves waits for a store that may not answer


class Verdict(NamedTuple):
    """Why all ranks have to end.

    Attributes:
        why: what has happened, for people.
        grace: seconds in which a rank may end by itself.
    """

    why: str
    grace: float


@dataclass
class _Peer:
    """What rank 0 knows of a rank."""

    heard: float
    state: dict[str, Any] = field(default_factory=dict)


class SignsOfLife:
    """Exchanges states with the other ranks in a thread.

    Args:
        store: the store; used by the thread only.
        world: this rank and the number of ranks.
        limit: seconds without a sign of life after which a rank counts as lost.
        turn: seconds between two exchanges.

    Attributes:
        heard: when this rank last had news of the others, by `time.monotonic`.
        progressed: when any rank last made progress, as far as this one knows.
        may_take_long: whether a rank is in a phase that may take long.
        verdict: why all ranks have to end; None as long as they need not.
    """

    def __init__(self, store: dist.Store, world: World, limit: float, turn: float) -> None:
        self._store, self._world, self._limit, self._turn = store, world, limit, turn
        self.heard = self.progressed = time.monotonic()
        self.may_take_long = True
        self.verdict: Verdict | None = None
        self._farewell: Verdict | None = None
        self._has_left = False
        self._beats = 0
        self._total: Any = None
        self._summary_beat = 0
        self._peers = {
            rank: _Peer(self.heard) for rank in range(1, world.size if world.is_first else 1)
        }
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signs of life", daemon=True)
        self._thread.start()

    def leave(self, why: Verdict | None = None) -> None:
        """Tell the others that this rank leaves: at its end, or for a reason that ends them, too.

        Returns after the message has been sent, or after two seconds.
        """
        self._farewell, self._has_left = why, True
        self._wake.set()
        self._thread.join(_LEAVING)

    def forgive(self) -> None:
        """Forget how long the others have been silent: this process itself was stopped."""
        now = self.heard = self.progressed = time.monotonic()
        for peer in self._peers.values():
            peer.heard = now

    def _run(self) -> None:
        try:
            while not self._has_left and not _is_store_lost():
                self._exchange()
                self._wake.wait(self._turn)
            if not _is_store_lost():
                self._exchange()
        except (dist.DistError, RuntimeError):
            return  # the store is gone; `heard` grows old

    def _exchange(self) -> None:
        self._beats += 1
        self._store.set(str(self._world.rank), json.dumps(self._state()))
        if self._world.is_first:
            self._summarize()
        elif self._store.check([_SUMMARY]):
            self._read_summary(json.loads(self._store.get(_SUMMARY)))

    def _state(self) -> dict[str, Any]:
        process = f"process {this_process()['pid']} on {host()}"
        return {
            "beat": self._beats,
            "marks": CURRENT.marks,
            "long": CURRENT.may_take_long,
            "what": f"{process}, last seen in {CURRENT.phase} after update {CURRENT.update}",
            "left": self._has_left,
            "farewell": self._farewell,
        }

    def _summarize(self) -> None:
        """Read the states of all ranks, and write the summary for them."""
        now = time.monotonic()
        for rank, peer in self._peers.items():
            if peer.state.get("left") or not self._store.check([str(rank)]):
                continue
            state = json.loads(self._store.get(str(rank)))
            if state["beat"] != peer.state.get("beat"):
                peer.heard, peer.state = now, state
        self.heard = now
        self._judge(now)
        here = {0: self._state(), **{rank: peer.state for rank, peer in self._peers.items()}}
        total = {rank: state.get("marks", 0) for rank, state in here.items()}
        is_long = any(state.get("long", True) for state in here.values() if not state.get("left"))
        self._note_progress(total, is_long)
        summary = {
            "beat": self._beats,
            "marks": sum(total.values()),
            "long": is_long,
            "verdict": self.verdict or self._farewell,
        }
        self._store.set(_SUMMARY, json.dumps(summary))

    def _judge(self, now: float) -> None:
        for rank, peer in self._peers.items():
            if self.verdict is not None:
                return
            if peer.state.get("farewell") is not None:
                self.verdict = Verdict(*peer.state["farewell"])
            elif not peer.state.get("left") and now - peer.heard > self._limit:
                what = peer.state.get("what", "never seen")
                self.verdict = Verdict(
                    f"rank {rank} has given no sign of life for {now - peer.heard:.1f} s ({what}): "
                    "it was stopped or killed, or its host is lost",
                    0.0,
                )

    def _read_summary(self, summary: dict[str, Any]) -> None:
        if summary["beat"] != self._summary_beat:
            self._summary_beat = summary["beat"]
            self.heard = time.monotonic()
        self._note_progress(summary["marks"], summary["long"])
        if summary["verdict"] is not None and self.verdict is None:
            self.verdict = Verdict(*summary["verdict"])

    def _note_progress(self, total: Any, is_long: bool) -> None:
        if total != self._total or is_long != self.may_take_long:
            self._total, self.progressed = total, time.monotonic()
        self.may_take_long = is_long


def _is_store_lost() -> bool:
    """Return whether the store was in a launcher that has ended: torch would print pages."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and launcher.is_lost()
