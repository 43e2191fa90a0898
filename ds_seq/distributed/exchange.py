"""Send tensors from rank to rank while the training uses the process group.

They go through a gloo group of their own, so a thread can exchange them without mixing with the
collectives of the training, whatever its backend is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

from ds_seq.errors import UserError

_TIMEOUT = timedelta(minutes=30)  # the watchdog ends a rank that hangs much earlier


class Exchange:
    """A way for tensors in host memory between all ranks of the process group."""

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None

    def open(self) -> None:
        """Connect the ranks, unless they are; a collective, to be called before `swap`."""
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT)

    def swap(
        self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, int], memory: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """Send a tensor to some ranks, and receive one from some ranks.

        All ranks call it, and agree on who sends what to whom. It may be called in a thread, one
        call at a time.

        Args:
            outgoing: rank -> what it gets, in host memory. Nobody may change it before the end.
            incoming: rank -> number of values that it sends.
            memory: room (n,) for the largest of them, in host memory.

        Yields:
            A rank of `incoming` and what it has sent, a part of `memory` until the next one. At the
            end, all is sent.

        Raises:
            UserError: another rank has ended, or cannot be reached.
        """
        with _one_line():
            sent = [dist.isend(values, to, self._group) for to, values in outgoing.items()]
        world, own = dist.get_world_size(self._group), dist.get_rank(self._group)
        # a rank listens to those before it in turn, so that nobody has to serve all at once
        for rank in sorted(incoming, key=lambda other: (own - other) % world):
            values = memory[: incoming[rank]]
            with _one_line():
                _finish(dist.irecv(values, rank, self._group))
            yield rank, values
        with _one_line():
            for work in sent:
                _finish(work)


def _finish(work: dist.Work | None) -> None:
    assert work is not None, "None is for ranks outside of the group"
    work.wait()


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        cause = str(error).partition("\n")[0]
        raise UserError(f"another rank cannot be reached ({cause})") from error
