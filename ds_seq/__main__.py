"""`python -m ds_seq`: the same as `ds-seq`."""

from __future__ import annotations

import sys

from ds_seq.cli import main

if __name__ == "__main__":
    sys.exit(main())
