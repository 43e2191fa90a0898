"""From which sources the kernels in C were compiled.

The structures that Python fills are declared in C as well, so kernels of other sources must not be
called. `setup.py` runs this file by itself: it may import only the standard library.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest() -> str | None:
    """Return a digest of the sources in C, or None where there are none, as in a wheel."""
    paths = sorted(Path(__file__).parent.glob("native*.[ch]"))
    text = b"".join(path.name.encode() + path.read_bytes() for path in paths)
    return hashlib.sha256(text).hexdigest()[:16] if paths else None
