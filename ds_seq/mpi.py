"""The MPI library of the launcher, over mpi4py."""

from __future__ import annotations

from typing import Any

from ds_seq.errors import UserError


def load_mpi(size: int, otherwise: str) -> Any:
    """Import `mpi4py.MPI`, which must see the processes that the launcher has started.

    With the library of another MPI than the launcher's, each process is alone in a world of its
    own. mpi4py from PyPI loads the first library that the dynamic linker finds.

    Args:
        size: number of processes, as the launcher's variables say.
        otherwise: what to do without MPI, for the message.

    Raises:
        UserError: mpi4py cannot be loaded, or counts another number of processes.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # a missing library raises the latter
        raise UserError(
            f"MPI has started {size} processes, but mpi4py cannot load MPI ({error}); install "
            f"mpi4py and the library of this MPI, or {otherwise}"
        ) from None
    counted = MPI.COMM_WORLD.Get_size()
    if counted != size:
        library = MPI.Get_library_version().split("\n")[0].split(",")[0].strip("\0 ")
        raise UserError(
            f"MPI has started {size} processes, but mpi4py counts {counted}: it has loaded "
            f"{library}, which is not the launcher's MPI; set MPI4PY_LIBMPI to the path of the "
            "launcher's libmpi.so (MPICH: libmpi.so.12), choose srun's --mpi to match the library, "
            f"or {otherwise}"
        )
    return MPI
