"""`ds-seq from-fairseq`: translate a command of `fairseq-train`.

    ds-seq from-fairseq --out mine -- fairseq-train data-bin/x --arch transformer_iwslt_de_en ...

See `ds_seq.compat.fairseq`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ds_seq import files
from ds_seq.commands.arguments.from_fairseq import build_parser
from ds_seq.compat.fairseq.command import Given, read_command
from ds_seq.compat.fairseq.data import find_sides, held_out_text
from ds_seq.compat.fairseq.page import flags_page
from ds_seq.compat.fairseq.translate import Translation, translate
from ds_seq.compat.fairseq.writing import deepspeed_text, experiment_text
from ds_seq.errors import UserError

EXPERIMENT, DEEPSPEED = "experiment.yaml", "deepspeed.json"


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq from-fairseq`; return the exit code."""
    words = list(argv)
    place = words.index("--") if "--" in words else len(words)
    options = build_parser().parse_args(words[:place])
    command = words[place + 1 :]
    if options.flags:
        print(flags_page(), end="")
        return 0
    if not command:
        raise UserError(
            "from-fairseq: no command; write ds-seq from-fairseq [OPTION ...] -- fairseq-train "
            "DATA [FLAG ...]"
        )
    given = read_command(command)
    valid = None if options.valid is None else tuple(options.valid)
    if options.out is None:
        result = translate(given, valid)
        print(experiment_text(result, command, None), end="")
        print(f"# The DeepSpeed JSON, for train.deepspeed:\n#\n{_quoted(deepspeed_text(result))}")
        print("add --out DIR to write both", file=sys.stderr)
        return 0
    if options.out.exists():
        raise UserError(f"{options.out}: exists already; name a new folder")
    result = _write(given, valid, command, options.out)
    print("\n".join(_next_steps(result, options.out)))
    return 0


def _write(
    given: Given, valid: tuple[str, ...] | None, command: Sequence[str], out: Path
) -> Translation:
    text = None
    if valid is None and given["eval_bleu"] and given["task"]:
        sides = find_sides(given)
        text = held_out_text(sides, _pieces(given))
        if text is not None:
            valid = tuple(str(out / f"valid.{language}") for language in sides.languages)
    result = translate(given, None if valid is None else (valid[0], valid[1]))
    with files.replacing(out) as folder:
        folder.mkdir()
        content = experiment_text(result, command, str(out / DEEPSPEED))
        (folder / EXPERIMENT).write_text(content, encoding="utf-8")
        (folder / DEEPSPEED).write_text(deepspeed_text(result), encoding="utf-8")
        for path, lines in zip(valid or (), text or (), strict=False):
            content = "".join(f"{line}\n" for line in lines)
            (folder / Path(path).name).write_text(content, encoding="utf-8")
    return result


def _pieces(given: Given) -> list[str]:
    """Return how words were split, if the vocabulary joins them again."""
    if given["sentencepiece_model"]:
        return ["sentencepiece"]
    return ["@@ "] if given["bpe_codes"] else []


def _quoted(text: str) -> str:
    return "\n".join(f"# {line}" for line in text.splitlines())


def _vocabulary(result: Translation) -> list[str]:
    """Return the options of `ds-seq import` for the vocabulary of the data."""
    vocab = result.experiment["data"]["vocab"]
    part = vocab if "fairseq" in vocab else vocab["source"]
    words = []
    for key in ("codes", "sentencepiece"):
        words += [f"--{key}", part["fairseq"][key]] if key in part["fairseq"] else []
    tags = part.get("user_symbols", [])
    words += ["--user-symbols", ",".join(tags)] if tags else []
    return words + (["--moses"] if part["fairseq"].get("moses") else [])


def _next_steps(result: Translation, out: Path) -> list[str]:
    lines = [f"{out / EXPERIMENT}, {out / DEEPSPEED}", ""]
    lines += [f"{flag}: without effect: {reason}" for flag, reason in result.without_effect]
    lines += [f"note: {note}" for note in result.notes]
    experiment = shlex.quote(str(out / EXPERIMENT))
    first, last = result.sides.paths
    for checkpoint, folder in result.needs:
        words = ["import", "fairseq", checkpoint, "--dict", first, *_vocabulary(result)]
        words += [] if first == last else ["--target-dict", last]
        lines.append(f"first:    ds-seq {shlex.join([*words, '--out', folder])}")
    count = result.num_processes
    train = "ds-seq train" if count == 1 else f"deepspeed --num_gpus {count} ds_seq/train.py"
    lines += [
        f"check:    ds-seq check {experiment}",
        f"prepare:  ds-seq prepare {experiment}",
        f"train:    {train} {experiment}",
    ]
    return lines
