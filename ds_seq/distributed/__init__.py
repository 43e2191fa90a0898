"""The processes of a run: rank and world size, the process group, and a few collectives.

`discover` reads the environment of the launcher; `init` initializes the process group.
"""

from ds_seq.distributed.collectives import (
    agree_on_error,
    any_rank,
    barrier,
    broadcast_object,
    describe_places,
    gather_objects,
    gather_pieces,
    max_over_ranks,
    require_same,
    shared_errors,
    sum_over_ranks,
)
from ds_seq.distributed.device import (
    choose_gpu_kernels,
    full_fp32,
    keep_few_kernels,
    keep_freed_memory,
    number_format,
)
from ds_seq.distributed.group import (
    init,
    joined,
    meeting_store,
    rank,
    shutdown,
    watched,
    withdraw,
    world_size,
)
from ds_seq.distributed.launch import World, discover, free_port
from ds_seq.distributed.quiet import import_deepspeed, import_zero, quiet_deepspeed

__all__ = [
    "agree_on_error",
    "World",
    "any_rank",
    "barrier",
    "broadcast_object",
    "choose_gpu_kernels",
    "describe_places",
    "discover",
    "free_port",
    "full_fp32",
    "gather_objects",
    "gather_pieces",
    "import_deepspeed",
    "import_zero",
    "init",
    "joined",
    "keep_few_kernels",
    "keep_freed_memory",
    "max_over_ranks",
    "meeting_store",
    "number_format",
    "quiet_deepspeed",
    "rank",
    "require_same",
    "shared_errors",
    "shutdown",
    "sum_over_ranks",
    "watched",
    "withdraw",
    "world_size",
]
