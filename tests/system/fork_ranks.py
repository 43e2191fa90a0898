"""A launcher for tests: forks the ranks, so that torch and DeepSpeed are imported once.

    python tests/system/fork_ranks.py 2 ds_seq/train.py EXP.yaml [ARGUMENT ...]

Like the real ones, it ends all ranks when one has failed, and returns the exit code of that one.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import ds_seq.commands.train  # noqa: F401  (once, and not in each rank)
from ds_seq import cli, errors
from tests.distributed.harness import torch_launcher
from tests.ports import free_port


def main(words: list[str]) -> int:
    """Run the command in that many ranks."""
    size, script, *arguments = words
    world, port = int(size), free_port()
    ranks = {}
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            os.environ.update(torch_launcher(rank, world, port))
            code = 1
            try:
                code = errors.run_command(cli.main, [Path(script).stem, *arguments])
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        ranks[pid] = rank
    while ranks:
        pid, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        del ranks[pid]
        if code:
            for other in ranks:
                os.kill(other, signal.SIGTERM)
            time.sleep(0.2)
            return code if code > 0 else 128 - code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
