"""A language model's states as the input of the encoder, against token embeddings, on few pairs.

A small language model reads the English side of all pairs. Then translation is learned from the
first 2,000 pairs, with equal updates: with embeddings, with a mix of the layers of the frozen
language model, and with the output of a language model that is trained, too.

    python benchmarks/encoder_input.py --tsv lohelp.en-de.train.tsv --out runs/text --record

A finished training in `--out` is not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from common import RESULTS, Goal, finish, timed_command
from denoising import CONFIGS, figures
from experiments import CACHE, fetch_text
from real_text import RealText, minutes, score_table, trained

LANGUAGE_MODEL = CONFIGS / "lm_tiny.yaml"
PAIRS = 2000
SMALL = ("model.d_model=64", "model.ffn_dim=256", "model.decoder_layers=2", "train.max_tokens=1024")


def language_model(lab: RealText, text: Path, updates: int) -> Path:
    """Train the language model unless that is done; return its run folder."""
    data = lab.out / "lm-data"
    raw = {split: [{"text": str(text / "raw" / f"{split}.en")}] for split in ("train", "valid")}
    settings = (*SMALL, "data.vocab.size=2000", f"data.dir={data}", f"data.raw={json.dumps(raw)}")
    if not (data / "train.manifest.json").exists():
        data.mkdir(parents=True, exist_ok=True)
        (data / "vocab.model").write_bytes((lab.data / "vocab.model").read_bytes())
        timed_command("prepare", LANGUAGE_MODEL, *settings)
    every = f"train.validate_every={updates}"
    return trained(lab.run("lm"), LANGUAGE_MODEL, updates, *settings, every)


def main(argv: Sequence[str]) -> int:
    """Train what is missing, print, and record on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--tsv", type=Path, help="text to use instead of fetching one")
    parser.add_argument("--updates", type=int, default=300, help="of the translations")
    parser.add_argument("--lm-updates", type=int, default=300, help="of the language model")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    args = parser.parse_args(argv)
    text = fetch_text(CACHE, args.tsv)
    lab = RealText(args.out, text, PAIRS)
    model = language_model(lab, text, args.lm_updates)
    kinds = {
        "plain": "token embeddings",
        "lm_mix": "frozen language model, mix of layers",
        "lm_trained": "language model trained, too, its output",
    }
    more = {"lm_mix": ", layers: mix", "lm_trained": ", weights: trained"}
    common = ("scheduler.warmup_updates=50", f"train.validate_every={max(args.updates // 4, 1)}")
    for name in kinds:
        section = f"model.encoder_input={{path: {model}{more[name]}}}" if name in more else ""
        options = [section, "model.max_positions=255"] if section else []
        lab.train(name, args.updates, *common, *options)
    scored = lab.scored(list(kinds))
    last = [line for line in figures(model) if line["kind"] == "valid"][-1]
    body = (
        f"{PAIRS:,} pairs; the language model ({args.lm_updates:,} updates, {minutes(model):.1f} "
        f"processor minutes) has a validation perplexity of {last['perplexity']:.0f}.\n\n"
        f"{score_table(kinds, scored)}"
    )
    best = max(scored[name].bleu for name in more)
    goal = Goal("BLEU gained by the best of the language models", best - scored["plain"].bleu, 0.5)
    title = "A language model's states as the input of the encoder"
    return finish(title, body, [goal], args.record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
