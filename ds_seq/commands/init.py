"""`ds-seq init`: write an experiment file for your own parallel text.

ds-seq init --source train.en --target train.de > my.yaml
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import yaml

from ds_seq.commands.arguments.init import build_parser
from ds_seq.config.load import read_experiment
from ds_seq.config.yaml_file import parse_value
from ds_seq.errors import UserError
from ds_seq.text.lines import PairPath, count_pairs, decode_lines, read_blocks

_SAMPLE = 100_000  # pairs that are read to estimate lengths and the vocabulary
_LONGEST_PIECE = 16  # SentencePiece's limit, in characters
_TOKENS_PER_WORD = 1.5


class _Corpus(NamedTuple):
    """What the settings depend on.

    Attributes:
        pairs: number of sentence pairs.
        tokens: estimated number of tokens of the longer side.
        characters: number of different characters.
        pieces: number of subwords that the text certainly has.
    """

    pairs: int
    tokens: int
    characters: int
    pieces: int


class _Scale(NamedTuple):
    """Settings for corpora of up to a number of pairs.

    Attributes:
        pairs: the largest number of pairs; None: any.
        model: lines of the section `model`.
        vocab_size: size of the vocabulary, if the text has as many subwords.
        max_tokens: batch size.
        dropout: rate of dropout.
        lr: peak learning rate.
        epochs: passes over the data.
    """

    pairs: int | None
    model: tuple[str, ...]
    vocab_size: int
    max_tokens: int
    dropout: float
    lr: str
    epochs: int


_SCALES = (
    _Scale(
        20_000,
        ("d_model: 128", "encoder_layers: 2", "decoder_layers: 2", "num_heads: 4", "ffn_dim: 512"),
        2_000, 2_000, 0.3, "2e-3", 40,
    ),
    _Scale(
        200_000,
        ("d_model: 256", "encoder_layers: 4", "decoder_layers: 4", "num_heads: 4", "ffn_dim: 1024"),
        8_000, 4_096, 0.2, "1e-3", 30,
    ),
    _Scale(2_000_000, ("preset: iwslt_de_en",), 16_000, 4_096, 0.1, "5e-4", 20),
    _Scale(None, ("preset: wmt_en_de",), 32_000, 8_192, 0.1, "5e-4", 10),
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq init`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    train = _pairs("", args.source, args.target)
    valid = _pairs("valid-", args.valid_source, args.valid_target)
    test = _pairs("test-", args.test_source, args.test_target)
    languages = _languages(args, train[0])
    for pairs in (valid, test):
        count_pairs(pairs)
    text = _experiment(args, languages, {"train": train, "valid": valid, "test": test})
    read_experiment(_parsed(text))  # the file is accepted as it stands
    print(text, end="")
    return 0


def _pairs(option: str, sources: list[str], targets: list[str]) -> list[PairPath]:
    if len(sources) != len(targets):
        raise UserError(
            f"--{option}source names {len(sources)} file(s), but --{option}target {len(targets)}; "
            "give the same number, in the same order"
        )
    for path in (*sources, *targets):
        try:
            parse_value(_text(path))
        except yaml.YAMLError:  # control characters, or bytes that are not UTF-8
            raise UserError(
                f"{path!r}: a file with such a name cannot be named in an experiment; rename it"
            ) from None
    return [PairPath(Path(s), Path(t)) for s, t in zip(sources, targets, strict=True)]


def _languages(args: argparse.Namespace, first: PairPath) -> tuple[str, str]:
    codes = []
    for side, given, path in zip(
        ("source", "target"), (args.source_lang, args.target_lang), first, strict=True
    ):
        name = path.name.removesuffix(".gz").removesuffix(".bz2").removesuffix(".xz")
        suffix = Path(name).suffix.removeprefix(".")
        if given is None and not re.fullmatch(r"[A-Za-z]{2,3}([_-]\w+)?", suffix):
            raise UserError(
                f"{path}: its name does not end with a language, as train.en does; add "
                f"--{side}-lang CODE"
            )
        if given is None and suffix == "txt":
            raise UserError(f"{path}: add --{side}-lang CODE, such as --{side}-lang en")
        codes.append(suffix if given is None else given)
    if codes[0] == codes[1]:
        raise UserError(
            f"both languages are {codes[0]!r}; add --source-lang and --target-lang with two names"
        )
    return codes[0], codes[1]


def _survey(pairs: Sequence[PairPath]) -> _Corpus:
    """Count the pairs, and read some of them to estimate the rest.

    Raises:
        UserError: a file is missing or empty, or two files have different numbers of lines.
    """
    total = count_pairs(pairs)
    if total == 0:
        raise UserError(f"{pairs[0].source}: is empty; name the training text")
    blocks = read_blocks(pairs, min(_SAMPLE, total))
    sources, targets = decode_lines(next(iter(blocks)))
    sides = [
        # in a text without spaces, six characters stand for a word
        max(sum(len(line.split()) for line in side), sum(map(len, side)) // 6)
        for side in (sources, targets)
    ]
    if not all(sides):
        raise UserError(
            f"{pairs[0].source}, {pairs[0].target}: one of them has no text in its first "
            f"{len(sources):,} lines; name the training text"
        )
    words = set(chain.from_iterable(line.split() for line in chain(sources, targets)))
    characters = set().union(*words) if words else set()
    couples = {word[i : i + 2] for word in words for i in range(len(word) - 1)}
    short = sum(1 < len(word) <= _LONGEST_PIECE for word in words)
    tokens = max(sides) * _TOKENS_PER_WORD * total / max(1, len(sources))
    return _Corpus(total, int(tokens), len(characters), max(short // 2, len(couples) // 4))


def _experiment(
    args: argparse.Namespace, languages: tuple[str, str], splits: dict[str, list[PairPath]]
) -> str:
    corpus = _survey(splits["train"])
    scale = next(s for s in _SCALES if s.pairs is None or corpus.pairs <= s.pairs)
    name = args.name or "-".join(languages)
    feasible = corpus.characters + corpus.pieces + 8
    size = min(scale.vocab_size, feasible)
    is_large = size < 1.2 * corpus.characters  # Chinese, Japanese, or emoji everywhere
    updates = max(200, min(200_000, scale.epochs * corpus.tokens // scale.max_tokens))
    updates -= updates % 100
    every = max(50, min(2_000, updates // 20))
    passes = updates * scale.max_tokens / max(1, corpus.tokens)
    lines = [
        f"# {languages[0]} -> {languages[1]}, {corpus.pairs:,} sentence pairs. "
        "All options: configs/OPTIONS.md, or `ds-seq check --options`.",
        "# Paths are relative to the folder in which the commands run.",
        _line(f"name: {_text(name)}", "the run folder is runs/<name>"),
        "",
        "data:",
        f"  source_lang: {_text(languages[0])}",
        f"  target_lang: {_text(languages[1])}",
        _line(
            f"  dir: {_text(f'data/{name}')}", "`ds-seq prepare` writes vocabulary and shards here"
        ),
        _line("  raw:", "line n of one file translates line n of the other"),
        *chain.from_iterable(_split(split, pairs) for split, pairs in splits.items()),
        _line("  max_source_length: 128", "in subwords; longer pairs are not trained on"),
        "  max_target_length: 128",
        "  vocab:",
        _line(f"    size: {size}", "subwords, of both languages together"),
        "    model_type: bpe",
        *([_line("    character_coverage: 0.9995", "rare ones are unknown")] if is_large else []),
        "",
        _line("model:", "or a preset: iwslt_de_en, wmt_en_de (see OPTIONS.md)"),
        *(f"  {line}" for line in scale.model),
        _line("  norm_position: pre", "trains more stably than post"),
        _line(f"  dropout: {scale.dropout}", "less with more text"),
        *_experts(args.experts),
        "",
        f"optimizer: {{name: adamw, lr: {scale.lr}, betas: [0.9, 0.98], weight_decay: 1e-4}}",
        f"scheduler: {{name: inverse_sqrt, warmup_updates: {min(4_000, updates // 10)}}}",
        "",
        "train:",
        _line(f"  max_tokens: {scale.max_tokens}", "per process; lower it if memory runs out"),
        _line("  accumulate: 1", "batches per update; raise it with few processes"),
        _line("  precision: fp32", "bf16 on GPUs since Ampere: faster, half the memory"),
        "  clip_norm: 1.0",
        _line(f"  max_updates: {updates}", f"about {passes:.0f} passes over the text, one process"),
        f"  log_every: {max(10, every // 10)}",
        *_validation(bool(splits["valid"]), every),
    ]
    return "\n".join(lines) + "\n"


def _line(setting: str, comment: str) -> str:
    return f"{setting:<31} # {comment}"


def _split(split: str, pairs: list[PairPath]) -> list[str]:
    entries = [f"{{source: {_text(str(s))}, target: {_text(str(t))}}}" for s, t in pairs]
    if len(entries) == 1:
        return [f"    {split}: {entries[0]}"]
    return [f"    {split}:", *(f"      - {entry}" for entry in entries)] if entries else []


def _experts(number: int) -> list[str]:
    if number < 0 or number == 1:
        raise UserError(f"--experts {number}: give 2 or more, or 0 for a dense model")
    if number == 0:
        return ["", "criterion: {name: cross_entropy, label_smoothing: 0.1}"]
    return [
        _line(f"  moe: {{num_experts: {number}, top_k: 1}}", "in every second layer"),
        "",
        "criterion:",
        _line("  name: model_and_base", "adds the losses of the routers"),
        "  base: {name: cross_entropy, label_smoothing: 0.1}",
        "  loss_weights: {load_balance: 0.01, router_z: 0.001}",
    ]


def _validation(has_text: bool, every: int) -> list[str]:
    if has_text:
        return [
            _line(f"  validate_every: {every}", "and save a checkpoint"),
            _line("  patience: 10", "stop after 10 validations without a better BLEU"),
            "",
            "validation: {metrics: [bleu, chrf], best: bleu}",
        ]
    return [
        _line("  validate_every: null", "a number, once there is data.raw.valid"),
        f"  save_every: {every}",
    ]


def _text(value: str) -> str:
    """Return `value` as a YAML scalar, in quotes if it needs them."""
    is_plain = re.fullmatch(r"[\w./+-]+", value) is not None and parse_value(value) == value
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def _parsed(text: str) -> dict[str, object]:
    parsed = parse_value(text)
    assert isinstance(parsed, dict)
    return parsed
