"""Whether transformers translates with a written folder as ds_seq does with the run.

    python benchmarks/parity/huggingface_lines.py RUN --text TEST.en --python VENV/bin/python

RUN is a trained run that `ds-seq export --format hf` writes. Both translate the first lines of the
text, greedily and with a beam of 4; those that reach the limit there, where transformers forces the
end symbol at no cost, are left out. `--python` is an interpreter that has transformers; for
NLLB-MoE, before 5.0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ds_seq
from ds_seq.runs.export import export

SIDE = Path(__file__).with_name("huggingface_side.py")
_MOST_NEW_TOKENS = 38  # of 40 with the start and end symbols
_LEAST_EQUAL = 0.99


def main(argv: Sequence[str]) -> int:
    """Compare, and return 1 if more than one line in a hundred differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--python", required=True, help="interpreter that has transformers")
    parser.add_argument("--lines", type=int, default=500, help="number of lines")
    options = parser.parse_args(argv)
    lines = options.text.read_text(encoding="utf-8").splitlines()[: options.lines]
    model = ds_seq.load(options.run, checkpoint="last")
    with tempfile.TemporaryDirectory() as name:
        folder, answers = Path(name) / "written", Path(name) / "answers.json"
        export(options.run, folder, "last", form="hf")
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        (Path(name) / "lines.json").write_text(json.dumps(lines), encoding="utf-8")
        command = [options.python, str(SIDE), "--translate", f"{name}/lines.json", str(folder)]
        done = subprocess.run([*command, str(answers)], check=True, capture_output=True)
        version = json.loads(done.stdout.splitlines()[-1])["transformers"]
        theirs = json.loads(answers.read_text(encoding="utf-8"))
    worst = 1.0
    print(f"{kind}, transformers {version}, {len(set(lines))} different lines")
    for beam, answers_there in theirs.items():
        found = model.translate(
            lines, beam=int(beam), max_len_a=0.0, max_len_b=_MOST_NEW_TOKENS, length_penalty=1.0
        )
        pairs = zip(found, answers_there, strict=True)
        ended = [(ours, theirs) for ours, theirs in pairs if theirs is not None]
        equal = sum(ours == theirs for ours, theirs in ended)
        print(f"beam {beam}: {equal} of {len(ended)} equal, {len(set(found))} different ones")
        worst = min(worst, equal / len(ended))
    return int(worst < _LEAST_EQUAL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
