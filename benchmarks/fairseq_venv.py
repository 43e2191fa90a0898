"""Create the virtual environment of fairseq.

fairseq-fixed is fairseq 0.12 with the fixes for Python 3.11. It requires old versions of hydra that
should not affect other packages, so it gets a separate environment.
"""

from __future__ import annotations

from pathlib import Path

from peer_venvs import Peer, make_venv

FAIRSEQ = Peer(
    "fairseq-fixed==0.12.3.1",
    (
        *("setuptools", "wheel", "hydra-core==1.3.2", "omegaconf==2.3.0", "bitarray"),
        *("scikit-learn", "cffi", "cython", "regex"),
    ),
    # fairseq's switch to skip its C++ extensions: they build batches, score BLEU and support
    # other models, none of which is measured here, and they would require a compiler.
    {"READTHEDOCS": "1"},
)


def make_fairseq_venv(folder: Path) -> Path:
    """Return the interpreter of the environment, creating it if it is missing.

    Args:
        folder: folder of the environment; if deleted, it is created again.

    Raises:
        SystemExit: the installation failed.
    """
    return make_venv(FAIRSEQ, folder)
