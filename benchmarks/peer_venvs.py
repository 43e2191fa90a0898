"""Virtual environments of other toolkits, each with pinned versions of its own.

An environment can import the packages of the interpreter that creates it, so that all sides of a
comparison use the same build of torch. The toolkit is installed without its dependencies, most of
which are for parts that are not measured and some of which contradict ours; what its measured parts
import and the creating interpreter lacks is listed here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """A toolkit to compare with.

    Attributes:
        package: its pinned requirement.
        needed: requirements of the parts that are measured.
        variables: environment variables of its installation.
    """

    package: str
    needed: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)


EOLE = Peer("eole==0.6.4", ("configargparse==1.9.0", "pyonmttok==1.38.1", "rapidfuzz==3.14.6"))
HUGGING_FACE = Peer(
    "transformers==5.24.0",
    ("accelerate==1.15.0", "huggingface_hub==2.4.0", "regex", "tokenizers==0.23.3"),
)
JOEYNMT = Peer("joeynmt==2.3.0", ("importlib_metadata==10.2.0", "subword-nmt==0.3.8"))


def make_venv(peer: Peer, folder: Path) -> Path:
    """Return the interpreter of a toolkit's environment, creating it if it is missing.

    Args:
        peer: the toolkit.
        folder: folder of the environment; if deleted, it is created again.

    Raises:
        SystemExit: the installation failed.
    """
    python = folder / "bin" / "python"
    done = folder / "complete"
    signature = f"{peer.package} {sys.version} {sysconfig.get_path('purelib')}"
    if done.exists() and done.read_text(encoding="utf-8") == signature:
        return python
    print(f"creating {folder} for {peer.package} (once)", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    answer = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(
        subprocess.run(answer, check=True, capture_output=True, text=True).stdout.strip()
    )
    (packages / "parent.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *peer.needed])
    _run([*pip, "--no-deps", "--no-build-isolation", peer.package], peer.variables)
    done.write_text(signature, encoding="utf-8")
    return python


def _run(command: list[str], variables: Mapping[str, str] | None = None) -> None:
    result = subprocess.run(
        command,
        env={**os.environ, **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(
            f"{' '.join(command)} failed:\n{result.stdout[-2000:]}{result.stderr[-4000:]}"
        )
