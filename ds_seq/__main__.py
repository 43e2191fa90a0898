"""`python -m ds_seq`: the same as `ds-seq`, also in that it imports nothing from this folder."""

# ruff: noqa: E402 - the path is corrected first

import os
import sys

_FOLDER = os.path.dirname(os.path.realpath(__file__))
if __name__ == "__main__" and os.path.realpath(sys.path[0]) == os.getcwd():
    # `python -m` puts the working folder first on the path, so a file `yaml.py` in it would run.
    # Nothing may be imported before this line but `os` and `sys`, which Python has loaded already.
    sys.path[0] = os.path.dirname(_FOLDER)

from ds_seq.cli import main

if __name__ == "__main__":
    sys.exit(main())
