"""Create the virtual environment of fairseq.

fairseq-fixed is fairseq 0.12 with the fixes for Python 3.11. It requires old versions of hydra that
should not affect other packages, so it gets a separate environment. This environment can import
the packages of the interpreter that creates it, so that both sides of a comparison use the same
build of torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

FAIRSEQ = "fairseq-fixed==0.12.3.1"
NEEDED = (
    "setuptools",
    "wheel",
    "hydra-core==1.3.2",
    "omegaconf==2.3.0",
    "bitarray",
    "scikit-learn",
)
NEEDED_BY_IMPORTS = ("cffi", "cython", "regex")


def make_fairseq_venv(folder: Path) -> Path:
    """Return the interpreter of the environment, creating it if it is missing.

    Args:
        folder: folder of the environment; if deleted, it is created again.

    Raises:
        SystemExit: the installation failed.
    """
    python = folder / "bin" / "python"
    done = folder / "complete"
    signature = f"{FAIRSEQ} {sys.version} {sysconfig.get_path('purelib')}"
    if done.exists() and done.read_text(encoding="utf-8") == signature:
        return python
    print(f"creating {folder} for {FAIRSEQ} (once)", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    answer = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(
        subprocess.run(answer, check=True, capture_output=True, text=True).stdout.strip()
    )
    (packages / "parent.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *NEEDED, *NEEDED_BY_IMPORTS])
    # fairseq's switch to skip its C++ extensions: they build batches, score BLEU and support
    # other models, none of which is measured here, and they would require a compiler.
    _run([*pip, "--no-deps", "--no-build-isolation", FAIRSEQ], READTHEDOCS="1")
    done.write_text(signature, encoding="utf-8")
    return python


def _run(command: list[str], **variables: str) -> None:
    result = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(
            f"{' '.join(command)} failed:\n{result.stdout[-2000:]}{result.stderr[-4000:]}"
        )
