#!/usr/bin/env python3
"""Make a folder of parallel text with mtdata, from a signature or a recipe, and check it."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ds_seq import files
from ds_seq.config.raw_text import SIGNATURE, signature_command
from ds_seq.data.download import SUMS_FILE, recorded_sums
from ds_seq.errors import UserError, run_command


def main(argv: Sequence[str]) -> int:
    """Run mtdata, then compare or record checksums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", help=f"a {SIGNATURE}, or the name of a recipe of mtdata")
    parser.add_argument("folder", type=Path, help="folder to write to")
    arguments = parser.parse_args(argv)
    command = _command(arguments.what, arguments.folder)
    if shutil.which(command[0]) is None:
        raise UserError(
            "mtdata is not installed; its requirements are many, so give it an environment of its "
            "own: python3 -m venv mtdata-env && mtdata-env/bin/pip install mtdata, and put "
            "mtdata-env/bin in PATH"
        )
    print(" ".join(command), flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise UserError(f"mtdata has failed with exit code {done.returncode}; see its messages")
    compare(arguments.folder)
    print(f"an experiment names this text so:\n  raw: {arguments.folder}")
    return 0


def _command(what: str, folder: Path) -> list[str]:
    """Return the command of mtdata that writes to `folder`."""
    path = Path(what)
    if not path.name.endswith(".txt") and "/" not in what:
        return ["mtdata", "get-recipe", "-ri", what, "-o", str(folder)]
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a {SIGNATURE}, or the name of a recipe")
    command = signature_command(path)
    if command is None:
        raise UserError(f"{path}: has no line `mtdata get ...`; is it a signature of mtdata?")
    return [str(folder) if word == "<out-dir>" else word for word in command]


def compare(folder: Path) -> None:
    """Compare the files of text with the recorded checksums, or record these.

    Raises:
        UserError: files differ from those of an earlier run, or there is no text.
    """
    sums = folder / SUMS_FILE
    known = recorded_sums(sums)
    found = {str(path.relative_to(folder)): files.fingerprint(path) for path in _texts(folder)}
    if not found:
        raise UserError(f"{folder}: mtdata has written no text; see its messages")
    changed = [name for name, sha256 in found.items() if known.get(name, sha256) != sha256]
    if changed:
        more = ", ..." if len(changed) > 3 else ""
        raise UserError(
            f"{folder}: {', '.join(changed[:3])}{more} differ from those of an earlier run, which "
            f"{sums} records; a data set or mtdata has changed. If that is meant, remove that file"
        )
    lines = [f"{sha256}  {name}\n" for name, sha256 in sorted({**known, **found}.items())]
    files.write_text(sums, "".join(lines))


def _texts(folder: Path) -> Iterator[Path]:
    """Yield the files of text: whole splits, and the corpora that they are made of."""
    for pattern in ("train.*", "dev.*", "test*.*", "train-parts/*"):
        for path in sorted(folder.glob(pattern)):
            is_about = ".meta." in path.name or path.suffix in (".json", ".jsonl")
            if path.is_file() and not is_about and not path.name.startswith("."):
                yield path


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
