"""The one exception for mistakes of the user, and the one place that turns it into an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class UserError(ValueError):
    """Bad input: the message names the file, key or line that is wrong and how to mend it."""


def run_command(function: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Call `function(argv)`; answer a `UserError` with its message on stderr and exit code 2.

    Any other exception is a defect of the program and keeps its traceback.
    """
    try:
        return function(argv)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"ds-seq: error: {line}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("ds-seq: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
