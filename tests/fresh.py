"""Code in an interpreter that has imported nothing yet."""

from __future__ import annotations

import subprocess
import sys


def words_printed_by(code: str) -> list[str]:
    """Run ``code`` in a fresh interpreter, which must succeed; return what it prints, in words."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()
