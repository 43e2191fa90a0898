"""A terminal that closes."""

from __future__ import annotations

import os

import pytest

from ds_seq.distributed.signals import leave_closed


def test_writing_to_a_closed_terminal_is_no_error_any_more() -> None:
    terminal, ours = os.openpty()
    read, pipe = os.pipe()
    os.write(ours, b"seen")
    leave_closed((ours, pipe))
    assert os.isatty(ours), "an open terminal stays"
    os.close(terminal)
    leave_closed((ours, pipe))
    assert os.write(ours, b"lost") == 4
    os.write(pipe, b"kept")
    assert os.read(read, 4) == b"kept"
    for descriptor in (ours, pipe, read):
        os.close(descriptor)


def test_output_to_a_pipe_that_nobody_reads_is_discarded() -> None:
    """Such as that of a launcher which has been killed."""
    reader, writer = os.pipe()
    leave_closed((writer,))
    os.write(writer, b"read")
    assert os.read(reader, 4) == b"read"
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"lost")
    leave_closed((writer,))
    os.write(writer, b"discarded")
    os.close(writer)
