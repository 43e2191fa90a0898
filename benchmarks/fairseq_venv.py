"""Makes the virtual environment that fairseq runs in.

fairseq-fixed is fairseq 0.12 with the mends that Python 3.11 needs. It asks for versions of hydra
that nothing else should have to live with, hence an environment of its own. That environment sees
the packages of the interpreter that makes it, so both sides of a comparison run on the very same
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
    """Returns the interpreter of the environment, which is made unless it is there.

    Args:
        folder: where it belongs; removed by hand, it is made anew.

    Raises:
        SystemExit: something could not be installed.
    """
    python = folder / "bin" / "python"
    done = folder / "complete"
    signature = f"{FAIRSEQ} {sys.version} {sysconfig.get_path('purelib')}"
    if done.exists() and done.read_text(encoding="utf-8") == signature:
        return python
    print(f"making {folder} for {FAIRSEQ} (once)", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    answer = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(
        subprocess.run(answer, check=True, capture_output=True, text=True).stdout.strip()
    )
    (packages / "parent.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *NEEDED, *NEEDED_BY_IMPORTS])
    # fairseq's own switch against building its C++ extensions: they cut batches, score BLEU and
    # serve other models, none of which is measured here, and they would ask for a compiler.
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
