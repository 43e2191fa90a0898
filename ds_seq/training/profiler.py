"""A trace of some updates, for `chrome://tracing` or Perfetto, and a table of the top operators."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ds_seq import distributed, files
from ds_seq.names import PROFILE_FOLDER
from ds_seq.training.run_log import RunLog

_MOST_BYTES = 1 << 28
_ROWS = 40


class Profiler:
    """Traces updates of this rank with `torch.profiler`.

    Args:
        updates: numbers of the first and the last update to trace; None for none.
        log: the log of the run.
    """

    def __init__(self, updates: tuple[int, int] | None, log: RunLog) -> None:
        self._updates, self._log = updates, log
        self._profile: Any = None
        self._first = 0

    def reach(self, update: int) -> None:
        """Start or stop where `update` updates are done; a run that resumes starts within."""
        if self._updates is None:
            return
        first, last = self._updates
        if self._profile is None and first <= update + 1 <= last:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._first = update + 1
            self._profile = torch.profiler.profile(activities=activities)
            self._profile.__enter__()
        elif self._profile is not None and update >= last:
            self.stop(update)

    def stop(self, update: int) -> None:
        """End the trace after `update` and write its files, if there is one."""
        if self._profile is None:
            return
        profile, self._profile, self._updates = self._profile, None, None
        profile.__exit__(None, None, None)
        if update < self._first:
            return
        folder = self._log.folder / PROFILE_FOLDER / f"updates_{self._first}-{update}"
        trace = folder / f"rank_{distributed.rank()}.json.gz"
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            size = _write_trace(profile, trace)
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=by, row_limit=_ROWS)
        files.write_text(folder / f"rank_{distributed.rank()}.txt", table)
        self._log.say(f"updates {self._first} to {update} were profiled: {folder}")
        if size > _MOST_BYTES:
            trace.unlink(missing_ok=True)
            self._log.say(
                f"ds-seq: warning: {trace} would have had {size / 1e6:,.0f} MB and was removed; "
                "profile fewer updates, or a smaller model"
            )


def _write_trace(profile: Any, path: Path) -> int:
    """Write a trace and return its size in bytes."""
    temporary = path.with_name(f".{path.name.removesuffix('.gz')}.tmp.gz")  # torch packs `.gz`
    try:
        profile.export_chrome_trace(str(temporary))
        size = temporary.stat().st_size
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return size
