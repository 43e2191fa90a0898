"""Checkpoints of fairseq's branch `moe`, imported and compared with what that branch computes.

    python benchmarks/parity/fairseq_moe.py --source CHECKOUT --python VENV/bin/python

`--source` is a copy of that branch, which is changed to run today, and `--python` an interpreter
with the packages of fairseq 0.12; see fairseq_moe_side.py, which writes the checkpoints in two
processes. With `--made FOLDER`, what it has written before is read.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ds_seq.runs.formats.fairseq.experiments import Vocabulary
from ds_seq.runs.formats.fairseq.importing import import_checkpoint
from ds_seq.runs.formats.imported import inputs_of

SIDE = Path(__file__).with_name("fairseq_moe_side.py")
LIMIT = 1e-5


@torch.no_grad()
def largest_error(folder: Path) -> tuple[float, int]:
    """Import a checkpoint; return the largest error of a logit, and the number of logits."""
    vocabulary = Vocabulary(folder / "dict.txt", None, None, None, moses=False)
    imported = import_checkpoint(folder / "checkpoint_best.pt", vocabulary, folder.name)
    model, worst, count = imported.model.double().eval(), 0.0, 0
    for source, target, expected in torch.load(folder / "expected.pt", weights_only=True):
        logits = model(inputs_of(source, target)).logits
        worst = max(worst, float((logits - expected).abs().max()))
        count += logits.numel()
    return worst, count


def main(argv: Sequence[str]) -> int:
    """Compare all kinds, and return 1 if one differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, help="copy of the branch, which is changed")
    parser.add_argument("--python", help="interpreter with fairseq's packages")
    parser.add_argument("--made", type=Path, help="read these instead of making them")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = options.made or Path(name)
        if options.made is None:
            command = [options.python, str(SIDE), str(options.source), name]
            subprocess.run(command, check=True, capture_output=True)
        worst = 0.0
        print(f"{'kind':<16}{'largest error':>15}{'logits':>10}")
        for path in sorted(path.parent for path in folder.glob("*/expected.pt")):
            error, count = largest_error(path)
            print(f"{path.name:<16}{error:>15.1e}{count:>10,}")
            worst = max(worst, error)
    print(f"largest error: {worst:.1e}; limit {LIMIT:.0e}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
