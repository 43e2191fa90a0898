"""Import and run DeepSpeed without its unsolicited output and work, and see its collectives."""

from __future__ import annotations

import functools
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ds_seq.environment import variable

_KEPT = ("all_gather_into_tensor", "reduce_scatter_tensor")


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


def import_zero() -> None:
    """Import what the ZeRO optimizers need, without torch's compiler backend.

    They import DeepSpeed's Muon, which ds_seq does not use and whose functions are decorated with
    `torch.compile`. That loads inductor: 1.7 of the 9 seconds that a rank took to its first update.
    """
    import torch._dynamo  # noqa: F401  (it remembers the variable from its first import)

    with variable("TORCHDYNAMO_DISABLE", "1"):
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401


@contextmanager
def late_collectives() -> Iterator[None]:
    """Let DeepSpeed, which is initialized in the block, look up collectives when it calls them.

    It keeps two functions of `torch.distributed` from its start on. The collectives of ZeRO would
    then pass by whoever replaces these functions, such as the recorder that knows whether a rank
    waits for others.
    """
    import torch.distributed as dist

    def late(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **options: Any) -> Any:
            return vars(dist)[name](*args, **options)

        return call

    originals = {name: vars(dist)[name] for name in _KEPT if name in vars(dist)}
    for name, original in originals.items():
        setattr(dist, name, late(name, original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def quiet_deepspeed() -> None:
    """Limit DeepSpeed's log to warnings and errors; its engine logs pages of settings at start.

    On a CPU its profiler ranges are off as well: nothing reads them there, and ZeRO pushes one per
    parameter and hook.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import logger, nvtx

    logger.setLevel(logging.WARNING)
    if get_accelerator().device_name() == "cpu":
        nvtx.enable_nvtx = False
    warnings.filterwarnings("ignore", module=r"deepspeed\..*")
    warnings.filterwarnings("ignore", module=r"torch\.distributed\..*")
