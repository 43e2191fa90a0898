"""Import and run DeepSpeed without its unsolicited output."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings


def import_deepspeed() -> None:
    """Import DeepSpeed without the linker errors of its probes for optional libraries.

    The output is shown only if the import fails.
    """
    if "deepspeed" in sys.modules:
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as printed:
        stderr = os.dup(2)
        os.dup2(printed.fileno(), 2)  # the probes are child processes, so sys.stderr is not enough
        try:
            import deepspeed  # noqa: F401
        except BaseException:
            printed.seek(0)
            os.write(stderr, printed.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def quiet_deepspeed() -> None:
    """Limit DeepSpeed's log to warnings and errors; its engine logs pages of settings at start."""
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"deepspeed\..*")
    warnings.filterwarnings("ignore", module=r"torch\.distributed\..*")
