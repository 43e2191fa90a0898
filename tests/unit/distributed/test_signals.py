"""A terminal that closes."""

from __future__ import annotations

import os

from ds_seq.distributed.signals import _leave_closed_terminal


def test_writing_to_a_closed_terminal_is_no_error_any_more() -> None:
    terminal, ours = os.openpty()
    read, pipe = os.pipe()
    os.write(ours, b"seen")
    _leave_closed_terminal((ours, pipe))
    assert os.isatty(ours), "an open terminal stays"
    os.close(terminal)
    _leave_closed_terminal((ours, pipe))
    assert os.write(ours, b"lost") == 4
    os.write(pipe, b"kept")
    assert os.read(read, 4) == b"kept"
    for descriptor in (ours, pipe, read):
        os.close(descriptor)
