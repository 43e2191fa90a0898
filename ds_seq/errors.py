"""The exception for user errors, and the function that turns it into an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from contextvars import copy_context
from io import TextIOWrapper

EXIT_USER_ERROR = 2
EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 130
EXIT_RANK_LOST = 75
"""A rank hangs or has died; the same command may succeed (`EX_TEMPFAIL` of sysexits.h)."""


class UserError(ValueError):
    """Invalid input; the message names the file, key or line that is wrong and how to fix it."""

    exit_code = EXIT_USER_ERROR


class DivergedError(UserError):
    """Training has diverged: the same command would fail again, so nothing should restart it."""

    exit_code = EXIT_DIVERGED


class RankLost(RuntimeError):
    """Another rank has died, so this one cannot go on; not a mistake of anybody here."""


def escaped(line: str) -> str:
    """Return a line with its control characters escaped, for a terminal that would obey them."""
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


def run_command(function: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Call `function(argv)`; on a `UserError`, print its message to stderr and return its code.

    After a `RankLost` the exit code is `EXIT_RANK_LOST`. Any other exception is a bug and keeps its
    traceback. Context variables that the function sets are restored at its end. Standard output
    escapes characters that its encoding lacks, as standard error does, so that no report ends in an
    error of encoding.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return copy_context().run(function, argv)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"ds-seq: error: {escaped(line)}", file=sys.stderr)
        return error.exit_code
    except RankLost as error:
        traceback.print_exception(error)
        print(f"ds-seq: error: {escaped(str(error))}", file=sys.stderr)
        return EXIT_RANK_LOST
    except KeyboardInterrupt:
        print("ds-seq: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
