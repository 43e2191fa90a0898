#!/usr/bin/env python3
"""One model from English to many languages at two temperatures, with and without experts.

    python benchmarks/multilingual.py cs=text.en-cs.tsv.xz de=text.en-de.tsv.xz ... [--record]

Each file has English and the other language in its first two columns. Test sentences are chosen
by a hash of the English side, and such English sentences are left out of the training text of all
languages. All models see as many updates; BLEU and likelihoods are those of the last weights. Runs
and text stay in `--folder`, and what is finished there is not done again.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common import finish, table

import ds_seq
from ds_seq.config.yaml_file import to_yaml
from ds_seq.scores.scoring import Scorer
from ds_seq.text.lines import open_bytes

TEMPERATURES = (1, 5)
MODELS: Mapping[str, Mapping[str, Any] | None] = {
    "dense": None,
    "8 experts": {"num_experts": 8, "top_k": 1, "every": 2},
}
HELD_OUT = 97  # one English sentence in so many is held out


class Pair(NamedTuple):
    """A sentence and its translation."""

    source: str
    target: str


def pairs_of(path: Path) -> Iterator[Pair]:
    """Yield the pairs of a table."""
    with open_bytes(path, allowed=("table",)) as file:
        for line in file:
            source, target, *_ = line.decode().rstrip("\n").split("\t")
            yield Pair(source, target)


def is_held_out(source: str) -> bool:
    """Return whether an English sentence belongs to the test text, in every language."""
    digest = hashlib.blake2b(source.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT == 0


def write_text(files: Mapping[str, Path], folder: Path, num_test: int) -> dict[str, list[Pair]]:
    """Write the training text of each language; return the test text."""
    folder.mkdir(parents=True, exist_ok=True)
    test: dict[str, list[Pair]] = {}
    for language, path in files.items():
        pairs = list(pairs_of(path))
        test[language] = [pair for pair in pairs if is_held_out(pair.source)][:num_test]
        rows = (f"{p.source}\t{p.target}\n" for p in pairs if not is_held_out(p.source))
        (folder / f"{language}.tsv").write_text("".join(rows), encoding="utf-8")
    return test


def experiment(
    folder: Path, languages: list[str], model: str, temperature: int, updates: int
) -> dict[str, Any]:
    """Return the experiment of a model."""
    moe = MODELS[model]
    cross_entropy = {"name": "cross_entropy", "label_smoothing": 0.1}
    with_experts = {
        "name": "model_and_base",
        "base": cross_entropy,
        "loss_weights": {"load_balance": 0.01, "router_z": 0.001},
    }
    name = f"{model.replace(' ', '-')}-t{temperature}"
    return {
        "name": name,
        "run_dir": str(folder / "runs" / name),
        "data": {
            "source_lang": "en",
            "target_lang": languages[0],
            "dir": str(folder / "data"),
            "corpora": {
                code: {"tsv": str(folder / "text" / f"{code}.tsv"), "languages": ["en", code]}
                for code in languages
            },
            "mixing": {
                "temperature": temperature,
                "language_tags": {code: f"<2{code}>" for code in languages},
            },
            "max_source_length": 64,
            "max_target_length": 64,
            "vocab": {
                "size": 8000,
                "model_type": "bpe",
                "user_symbols": [f"<2{code}>" for code in languages],
            },
        },
        "model": {
            "d_model": 128,
            "ffn_dim": 512,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "num_heads": 4,
            "dropout": 0.1,
            "norm_position": "pre",
            **({} if moe is None else {"moe": moe}),
        },
        "criterion": cross_entropy if moe is None else with_experts,
        "optimizer": {"name": "adamw", "lr": 5e-3, "betas": [0.9, 0.98]},
        "scheduler": {"name": "inverse_sqrt", "warmup_updates": min(200, updates // 4)},
        "train": {
            "max_tokens": 2000,
            "max_updates": updates,
            "log_every": 50,
            "validate_every": None,
            "save_every": updates,
            "tensorboard": False,
        },
    }


class Quality(NamedTuple):
    """How well a model translates into a language.

    Attributes:
        bleu: BLEU of its translations.
        nats: negative log-likelihood of a token of the references, end symbols included.
    """

    bleu: float
    nats: float


def quality_of(run: Path, test: Mapping[str, list[Pair]], beam: int) -> dict[str, Quality]:
    """Return the quality of the last weights by language."""
    model = ds_seq.load(run)
    found = {}
    for language, pairs in test.items():
        sources = [f"<2{language}> {pair.source}" for pair in pairs]
        references = [pair.target for pair in pairs]
        bleu = Scorer(language)(model.translate(sources, beam=beam), references)[0].value
        tokens = [token for s in model.score(sources, references) for token in s.token_scores]
        found[language] = Quality(bleu, -statistics.fmean(tokens))
    return found


def report(found: Mapping[str, Mapping[str, Quality]], test: Mapping[str, list[Pair]]) -> str:
    """Return a table of BLEU and one of likelihoods, a column for each model."""
    texts = []
    for field, digits, title in (("bleu", 1, "BLEU"), ("nats", 3, "Nats per token")):
        rows = [
            [code, f"{len(pairs):,}"]
            + [f"{getattr(each[code], field):.{digits}f}" for each in found.values()]
            for code, pairs in test.items()
        ]
        means = [
            f"{statistics.fmean(getattr(q, field) for q in each.values()):.{max(digits, 2)}f}"
            for each in found.values()
        ]
        body = table(["language", "sentences", *found], [*rows, ["mean", "", *means]])
        texts.append(f"### {title}\n\n{body}")
    return "\n\n".join(texts)


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("texts", nargs="+", metavar="LANGUAGE=FILE")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache/ds_seq/multilingual")
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--sentences", type=int, default=200, help="test sentences per language")
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--only", help="one model, such as `dense-t5`")
    parser.add_argument("--record", action="store_true", help="append the table to RESULTS.md")
    arguments = parser.parse_args()
    files = {
        code: Path(name) for code, _, name in (text.partition("=") for text in arguments.texts)
    }
    test = write_text(files, arguments.folder / "text", arguments.sentences)
    found: dict[str, dict[str, Quality]] = {}
    for model in MODELS:
        for temperature in TEMPERATURES:
            content = experiment(
                arguments.folder, list(files), model, temperature, arguments.updates
            )
            if arguments.only not in (None, content["name"]):
                continue
            path = arguments.folder / f"{content['name']}.yaml"
            path.write_text(to_yaml(content), encoding="utf-8")
            ds_seq.prepare(path)
            ds_seq.fit(path, resume=True)
            column = f"{model}, T = {temperature}"
            found[column] = quality_of(Path(content["run_dir"]), test, arguments.beam)
            mean = statistics.fmean(quality.bleu for quality in found[column].values())
            print(f"{column}: mean BLEU {mean:.2f}", file=sys.stderr, flush=True)
    title = f"English to {len(files)} languages: temperature, and experts"
    return finish(title, report(found, test), [], arguments.record)


if __name__ == "__main__":
    sys.exit(main())
