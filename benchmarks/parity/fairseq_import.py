#!/usr/bin/env python3
"""Whether imported checkpoints of fairseq compute what fairseq computes with them.

    benchmarks/parity/fairseq_import.py --python PYTHON --data BIN [--fork FOLDER] [--run FILE]

PYTHON has fairseq (`benchmarks/fairseq_venv.py`), and BIN is a folder of fairseq-preprocess with a
split `test`. For each variant of the model, fairseq makes a checkpoint with random weights, and
both sides score the first sentences of that split, in float64. `--fork` is a checkout of
VarunGumma's fairseq at acd1aa71, `--with-adapters` one at 64270562 and `--newest` one at f6cd0f72,
for the variants that each of them has. `--run` is a trained checkpoint, whose
translations of the split by `fairseq-generate` and by `ds-seq generate` are compared, too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ds_seq import cli
from ds_seq.data.fairseq import find_parts
from ds_seq.data.fairseq_files import IndexedFile
from ds_seq.runs.formats.fairseq.importing import TOLERANCE
from ds_seq.runs.formats.imported import inputs_of, text_inputs_of
from ds_seq.runs.open import load_run

HERE = Path(__file__).parent
_TRAINED = "--optimizer adam --max-tokens 4000"
_TINY = (
    "--arch transformer --encoder-embed-dim {width} --encoder-ffn-embed-dim 12 --encoder-layers 2 "
    "--decoder-layers 3 --encoder-attention-heads 2 --decoder-attention-heads 2 --optimizer adam "
    "--max-tokens 4000"
)
_PRE = "--encoder-normalize-before --decoder-normalize-before"
_LEARNED = (
    "--encoder-learned-pos --decoder-learned-pos --max-source-positions 300 "
    "--max-target-positions 300"
)
# no dynamic kernel is longer than the texts: fairseq's softmax over one then depends on the length,
# though not when it translates
_CONVOLUTIONS = (
    "--arch lightconv --encoder-kernel-size-list [3,5] --decoder-kernel-size-list [3,4,5]"
)
_GATED = (
    "--arch fconv --encoder-embed-dim WIDTH --decoder-embed-dim WIDTH "
    "--max-source-positions 200 --max-target-positions 200 "
    "--encoder-layers [(WIDTH,3),(12,4)] --decoder-layers [(WIDTH,3),(16,2)]"
)
VARIANTS: Mapping[str, str] = {
    "post": "--share-all-embeddings",
    "pre": _PRE,
    "tied": "--share-decoder-input-output-embed --activation-fn gelu --no-scale-embedding",
    "learned": f"{_PRE} {_LEARNED} --layernorm-embedding",
    "none": "--activation-fn gelu_accurate --no-token-positional-embeddings",
    "old": f"--old {_PRE} --share-all-embeddings",
    "lightweight": f"{_CONVOLUTIONS} --encoder-conv-type lightweight --decoder-conv-type "
    "lightweight --share-all-embeddings",
    "dynamic": f"{_CONVOLUTIONS} {_PRE} --encoder-glu False --encoder-conv-dim 16",
    "fconv": f"{_GATED} --decoder-out-embed-dim 16",
    "fconv_shared": f"{_GATED} --decoder-out-embed-dim WIDTH --share-input-output-embed",
    "languages": "--task translation_multi_simple_epoch --lang-pairs en-de,de-en --langs en,de "
    "--encoder-langtok src --decoder-langtok --share-all-embeddings",
    "bart": "--arch bart_base --task denoising --mask 0.3 --mask-length span-poisson "
    "--max-source-positions 300 --max-target-positions 300",
}
_OF_ONE_SIDE = ("bart",)  # with the dictionary of the source for both
_ROBERTA = (
    "--task masked_lm --tokens-per-sample 200 --encoder-embed-dim WIDTH --encoder-layers 2 "
    "--encoder-ffn-embed-dim 12 --encoder-attention-heads 2 --arch"
)
MASKED_MODELS: Mapping[str, str] = {
    "roberta": f"{_ROBERTA} roberta_base",
    "roberta_untied": f"{_ROBERTA} roberta_prenorm --untie-weights-roberta --max-positions 300",
}
_LM = "--task language_modeling --tokens-per-sample 200 --decoder-embed-dim WIDTH"
_SMALL = (
    "--decoder-ffn-embed-dim 12 --decoder-layers 3 --decoder-attention-heads 2 "
    "--decoder-input-dim WIDTH --decoder-output-dim WIDTH"
)
_BANDS = "--adaptive-softmax-cutoff 9,15 --criterion adaptive_loss"
_HALVES = f"{_BANDS} --adaptive-softmax-factor 2"
_BOTH = f"{_HALVES} --adaptive-input --adaptive-input-cutoff 9,15 --adaptive-input-factor 2"
_GATED_LM = f"{_LM} --arch fconv_lm --decoder-layers"
LANGUAGE_MODELS: Mapping[str, str] = {
    "lm_adaptive_tied": f"{_LM} {_SMALL} --arch transformer_lm_big {_BOTH} --tie-adaptive-weights "
    "--tie-adaptive-proj --no-decoder-final-norm",
    "lm_adaptive_tables": f"{_LM} {_SMALL} --arch transformer_lm {_BOTH} --tie-adaptive-weights",
    "lm_adaptive_apart": f"{_LM} {_SMALL} --arch transformer_lm_big {_BOTH}",
    "lm_characters": f"{_LM} {_SMALL} --arch transformer_lm_gpt --character-embeddings "
    "--character-filters [(1,4),(3,5)] --character-embedding-dim 3",
    "lm_softmax": f"{_LM} {_SMALL} --arch transformer_lm_gpt {_HALVES}",
    "lm_lightconv": f"{_LM} {_SMALL} --arch lightconv_lm --decoder-kernel-size-list [3,4,5]",
    "lm_lightconv_adaptive": f"{_LM} {_SMALL} --arch lightconv_lm {_BOTH} --decoder-conv-type "
    "lightweight --decoder-kernel-size-list [3,4,5] --tie-adaptive-weights --decoder-learned-pos",
    "lm_fconv": f"{_GATED_LM} [(10,3),(4,1,0),(4,3,0),(12,1,3),(12,2)]",
    "lm_fconv_adaptive": f"{_GATED_LM} [(16,3)]*2 {_BANDS}",
    "lm_lstm": f"{_LM} --arch lstm_lm --decoder-layers 2 --decoder-hidden-size 10 "
    "--decoder-out-embed-dim 6",
    "lm_lstm_tied": f"{_LM} --arch lstm_lm --decoder-hidden-size 10 --decoder-out-embed-dim WIDTH "
    "--share-decoder-input-output-embed",
    "lm_lstm_adaptive": f"{_LM} --arch lstm_lm --decoder-hidden-size 16 {_BANDS}",
}
OF_FORK: Mapping[str, str] = {
    "stacked": "--encoder-recurrent-stacking 3 --decoder-recurrent-stacking 4",
    "factorized": "--encoder-factorized-embed-dim 4 --decoder-factorized-embed-dim 4",
    "glu": "--activation-fn glu",
    "reglu": f"--activation-fn reglu {_PRE}",
    "geglu": "--activation-fn geglu",
    "swiglu_rms": f"--activation-fn swiglu --replace-layernorm-with-rmsnorm {_PRE}",
    "rms_embeddings": "--replace-layernorm-with-rmsnorm --layernorm-embedding",
}
_POOLS = " ".join(
    f"--{stack}-add-adapters --{stack}-adapter-ids hi,as --{stack}-train-adapter hi "
    f"--{stack}-adapter-reduction-factor 2"
    for stack in ("encoder", "decoder")
)
WITH_ADAPTERS: Mapping[str, str] = {
    "adapters": f"{_PRE} {_POOLS}",
    "gated_adapters": f"{_POOLS} --encoder-adapter-use-gating --decoder-adapter-use-gating "
    "--adapter-activation-fn gelu",
}
OF_NEWEST: Mapping[str, str] = {
    "alibi": f'{_PRE} --no-token-positional-embeddings --alibi-args {{"type":"symmetrical"}}',
    "fused": "--float32 --attn-implementation fast_fused",
    "later_gate_rms": f"{_PRE} --float32 --attn-implementation fast --activation-fn silu "
    "--encoder-use-rmsnorm --decoder-use-rmsnorm --encoder-use-glu --decoder-use-glu",
}
RECORDED = (
    "post", "learned", "none", "old", "swiglu_rms", "stacked", "factorized",
    "gated_adapters", "alibi", "fused", "languages",
)  # fmt: skip
_WITHOUT_PAIR = (*LANGUAGE_MODELS, *MASKED_MODELS, *_OF_ONE_SIDE)
_SENTENCES = 20


def _with_width(variants: Mapping[str, str], width: int) -> Iterator[tuple[str, str]]:
    for name, flags in variants.items():
        yield name, flags.replace("WIDTH", str(width))


class Sides:
    """Runs both sides.

    Args:
        python: interpreter that has fairseq.
        data: folder of fairseq-preprocess.
        languages: source and target.
        folder: folder for what is made.
        record: whether to make what the tests have, which is small.
    """

    def __init__(
        self, python: Path, data: Path, languages: tuple[str, str], folder: Path, record: bool
    ) -> None:
        self._python, self._data, self._languages = python, data, languages
        self._folder = folder
        self._pairs = folder / "pairs.json"
        self._records, self._width = record, 8 if record else 32
        pairs = _pairs(data, languages, "train" if record else "test", 2 if record else _SENTENCES)
        self._pairs.write_text(json.dumps(pairs), encoding="utf-8")
        text = folder / "text"  # a language model has one dictionary
        text.mkdir()
        shutil.copy(data / f"dict.{languages[0]}.txt", text / "dict.txt")

    def differences(self, variants: Mapping[str, str], fork: Path | None) -> dict[str, float]:
        """Return the largest difference of a logit of each variant."""
        source, target = self._languages
        tiny = {False: _TINY.format(width=self._width), True: _TRAINED}
        pair = f"-s {source} -t {target}"  # which a training with several pairs does not accept
        flags = {}
        for name, given in _with_width(variants, self._width):
            has_sizes = "--arch fconv" in given or name in (*LANGUAGE_MODELS, *MASKED_MODELS)
            is_one_pair = "--lang-pairs" not in given and name not in _WITHOUT_PAIR
            flags[name] = f"{tiny[has_sizes]} {pair if is_one_pair else ''} {given}"
        listed = self._folder / "variants.json"
        listed.write_text(json.dumps(flags), encoding="utf-8")
        script = HERE / "fairseq_import_side.py"
        words = [self._python, script, self._data, self._pairs, listed, self._folder]
        _run([*map(str, words)], "" if fork is None else str(fork))
        return {} if self._records else {name: self._difference(name) for name in variants}

    def _difference(self, name: str) -> float:
        run = self.imported(self._folder / f"{name}.pt")
        model = load_run(run, "best", dtype=torch.float64).model
        largest = 0.0
        pairs = json.loads(self._pairs.read_text(encoding="utf-8"))
        expected = torch.load(self._folder / f"{name}.logits.pt")
        for (given, shifted), theirs in zip(pairs, expected, strict=True):
            is_text = name in (*LANGUAGE_MODELS, *MASKED_MODELS)
            with torch.no_grad():
                ours = model(text_inputs_of(given) if is_text else inputs_of(given, shifted)).logits
            largest = max(largest, float((ours - theirs).abs().max()))
        return largest

    def imported(self, checkpoint: Path, *more: str) -> Path:
        """Return the run folder of a checkpoint, which is imported once."""
        run = self._folder / f"run-{checkpoint.stem}"
        if run.exists():
            return run
        first, second = (self._data / f"dict.{code}.txt" for code in self._languages)
        words = ["import", "fairseq", str(checkpoint), "--dict", str(first), "--out", str(run)]
        words += ["--source-lang", self._languages[0], *more]
        if checkpoint.stem not in _WITHOUT_PAIR:
            words += ["--target-dict", str(second), "--target-lang", self._languages[1]]
        if cli.main(words) != 0:
            raise SystemExit(f"ds-seq {' '.join(words)} failed")
        return run

    def translations(self, checkpoint: Path, beam: int) -> tuple[list[str], list[str]]:
        """Return what fairseq-generate and `ds-seq generate` make of the split test, in pieces."""
        script, (source, target) = str(HERE / "fairseq_run.py"), self._languages
        words = [self._data, "--path", checkpoint, "--beam", beam, "--batch-size", 1, "--cpu"]
        words += ["-s", source, "-t", target, "--max-len-a", 1.2, "--max-len-b", 10]
        printed = _run([str(self._python), script, "generate", *map(str, words),
                        "--scoring", "sacrebleu", "--num-workers", "0"], "")  # fmt: skip
        found = {int(n): text for n, text in re.findall(r"^H-(\d+)\t\S+\t(.*)$", printed, re.M)}
        sources = dict(re.findall(r"^S-(\d+)\t(.*)$", printed, re.M))
        lines = self._folder / "test.txt"
        # fairseq leaves out what it cannot batch
        text = "".join(f"{sources[str(n)]}\n" for n in sorted(found))
        lines.write_text(text, encoding="utf-8")
        run = self.imported(checkpoint)
        ours = self._folder / f"ours.{beam}.txt"
        words = ["generate", run, "--input", lines, "--output", ours, "--beam", beam]
        words += ["--max-len-a", 1.2, "--max-len-b", 10]
        _run([sys.executable, "-m", "ds_seq", *map(str, words)], None)
        return [found[n] for n in sorted(found)], ours.read_text(encoding="utf-8").splitlines()


def main(argv: Sequence[str]) -> int:
    """Compare and print; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--languages", nargs=2, default=("en", "de"))
    for name in ("--fork", "--with-adapters", "--newest"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--run", type=Path, action="append", default=[])
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=[*VARIANTS, *LANGUAGE_MODELS, *MASKED_MODELS],
        help="only these of fairseq's",
    )
    parser.add_argument("--only-runs", action="store_true", help="compare translations only")
    parser.add_argument("--record", type=Path, help="write the data of the tests into this .tar.xz")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        is_recording = options.record is not None
        languages = (options.languages[0], options.languages[1])
        sides = Sides(options.python, options.data, languages, Path(name), is_recording)
        known = {**VARIANTS, **LANGUAGE_MODELS, **MASKED_MODELS}
        variants = {name: known[name] for name in options.variants or known}
        found = {} if options.only_runs else sides.differences(variants, None)
        of_forks = (
            (OF_FORK, options.fork),
            (WITH_ADAPTERS, options.with_adapters),
            (OF_NEWEST, options.newest),
        )
        for variants, fork in of_forks:
            if fork is not None:
                found |= sides.differences(variants, fork)
        for title, difference in found.items():
            print(f"{title:20} {difference:.1e}", flush=True)
        if is_recording:
            _record(Path(name), options.record, options.variants or RECORDED)
            return 0
        worst = max(found.values(), default=0.0)
        is_equal = True
        for checkpoint in options.run:
            for beam in (1, 5):
                theirs, ours = sides.translations(checkpoint, beam)
                same = sum(a == b for a, b in zip(theirs, ours, strict=True))
                is_equal &= same == len(theirs)
                print(f"{checkpoint} beam {beam}: {same} of {len(theirs)} translations equal")
                for a, b in zip(theirs, ours, strict=True):
                    if a != b:
                        print(f"  fairseq: {a}\n  ds_seq:  {b}")
    print(f"largest difference of a logit: {worst:.1e} (allowed: {TOLERANCE:g})")
    return 0 if worst <= TOLERANCE and is_equal else 1


def _record(folder: Path, out: Path, recorded: Sequence[str]) -> None:
    """Write the checkpoints and logits that the tests compare with."""
    for name in recorded:
        values = torch.load(folder / f"{name}.logits.pt")
        torch.save([each.float() for each in values], folder / f"{name}.logits.pt")
    with tarfile.open(out, "w:xz", preset=9) as archive:
        archive.add(folder / "pairs.json", "pairs.json")
        for name in recorded:
            for suffix in (".pt", ".logits.pt"):
                archive.add(folder / f"{name}{suffix}", f"{name}{suffix}")


def _pairs(
    data: Path, languages: tuple[str, str], split: str, most: int
) -> list[tuple[list[int], list[int]]]:
    """Return the ids of the first pairs of a split: sources, and inputs of the decoder."""
    prefix = find_parts([data], split, languages)[0]
    sides = []
    for language in languages:
        file = IndexedFile(prefix.with_name(f"{prefix.name}.{language}"))
        block = file.gather(np.arange(min(most, len(file))))
        ends = block.lengths.cumsum()
        starts = ends - block.lengths
        sides.append([block.tokens[a:b].tolist() for a, b in zip(starts, ends, strict=True)])
    return [(s, [t[-1], *t[:-1]]) for s, t in zip(*sides, strict=True)]


def _run(command: list[str], path: str | None) -> str:
    """Run a command; `path` replaces PYTHONPATH, None keeps it."""
    variables = dict(os.environ)
    if path is not None:  # fairseq 0.12 reads its own files as PyTorch did before 2.6
        variables |= {"PYTHONPATH": path, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-500:]}{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
