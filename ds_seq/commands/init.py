"""`ds-seq init`: write an experiment file for your own parallel text.

ds-seq init --source train.en --target train.de > my.yaml
ds-seq init --data opus.tsv.zst --source-lang en --target-lang fr > my.yaml
ds-seq init --source train.en --target train.de --from-model runs/nllb --freeze encoder > my.yaml
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from ds_seq.commands.arguments.init import build_parser
from ds_seq.commands.init_from import Base, Text, fine_tuning, generation_lines, read_base
from ds_seq.config.load import read_experiment
from ds_seq.config.raw_text import plain_name, raw_texts
from ds_seq.config.text_files import RawConfig
from ds_seq.config.yaml_file import parse_value
from ds_seq.errors import UserError
from ds_seq.names import SIDES, SPLITS
from ds_seq.text.lines import PairPath, count_pairs, decode_lines, read_blocks
from ds_seq.text.raw import pair_path

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
    raw = _raw_section(args)
    languages = _languages(args, raw)
    texts = _texts(raw, languages)
    for split in ("valid", "test"):
        count_pairs(texts[split])
    if args.from_model is None and args.freeze:
        raise UserError("--freeze: is for --from-model; without it nothing is trained yet")
    base = None if args.from_model is None else read_base(args.from_model, languages)
    if base is None:
        text = _experiment(args, languages, raw, texts)
    else:
        text = _fine_tuning(args, base, languages, raw, texts)
    read_experiment(_parsed(text))  # the file is accepted as it stands
    print(text, end="")
    return 0


def _raw_section(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Return the entries of each split; `folder` instead if one has all splits."""
    options = vars(args)
    section: dict[str, list[dict[str, Any]]] = {}
    for split in SPLITS:
        option = "" if split == "train" else f"{split}-"
        sources, targets, both = (
            options[f"{option}{kind}".replace("-", "_")] for kind in (*SIDES, "data")
        )
        if len(sources) != len(targets):
            raise UserError(
                f"--{option}source names {len(sources)} file(s), but --{option}target "
                f"{len(targets)}; give the same number, in the same order"
            )
        for name in (*sources, *targets, *both):
            _check_name(name)
        pairs = zip(sources, targets, strict=True)
        section[split] = [{"source": source, "target": target} for source, target in pairs]
        section[split] += [_entry(name, args) for name in both]
    if not section["train"]:
        raise UserError("ds-seq init: missing: --source and --target, or --data")
    return section


def _check_name(name: str) -> None:
    try:
        parse_value(_text(name))
    except yaml.YAMLError:  # control characters, or bytes that are not UTF-8
        raise UserError(
            f"{name!r}: a file with such a name cannot be named in an experiment; rename it"
        ) from None


def _entry(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the entry of a file or folder with both sides."""
    form = "folder" if Path(name).is_dir() or name.endswith("signature.txt") else ""
    form = form or Path(plain_name(name)).suffix.lower().removeprefix(".")
    form = {"tab": "tsv", "json": "jsonl"}.get(form, form)
    if form not in ("tsv", "jsonl", "tmx", "xml", "folder"):
        raise UserError(
            f"{name}: should be a .tsv, .jsonl, .tmx or .xml (also compressed) or a folder; two "
            "files are given by --source and --target"
        )
    entry: dict[str, Any] = {form: name}
    if form == "tsv":
        entry |= {"columns": args.columns} if args.columns else {}
        entry |= {"header": True} if args.header else {}
    elif args.keys:
        entry["keys"] = args.keys
    return entry


def _texts(
    raw: dict[str, list[dict[str, Any]]], languages: tuple[str, str]
) -> dict[str, list[PairPath]]:
    """Return the texts of each split; a folder has the splits that have no entry, too."""
    try:
        config = RawConfig.model_validate({**raw, "folder": _whole_folder(raw)})
    except ValidationError as error:
        reasons = [item["msg"].removeprefix("Value error, ") for item in error.errors()]
        raise UserError("\n".join(f"ds-seq init: {reason}" for reason in reasons)) from None
    return {
        split: [
            pair_path(text, counts_invalid=False) for text in raw_texts(config, split, languages)
        ]
        for split in SPLITS
    }


def _whole_folder(raw: dict[str, list[dict[str, Any]]]) -> str | None:
    """Return the folder that is the only training text, and has other splits, too."""
    (first, *more) = raw["train"]
    return None if more or set(first) != {"folder"} else str(first["folder"])


def _languages(args: argparse.Namespace, raw: dict[str, list[dict[str, Any]]]) -> tuple[str, str]:
    codes = []
    first = raw["train"][0]
    for number, (side, given) in enumerate(
        zip(SIDES, (args.source_lang, args.target_lang), strict=True)
    ):
        path = first.get(side) or next(iter(first.values()))
        name = args.keys[number] if "source" not in first and args.keys else plain_name(path)
        # of `train.en` and of `translation.en`
        suffix = name.rpartition(".")[2] if "." in name or "source" not in first else ""
        if given is None and not re.fullmatch(r"[A-Za-z]{2,3}([_-]\w+)?", suffix):
            raise UserError(
                f"{path}: its name does not end with a language, as train.en does; add "
                f"--{side}-lang CODE"
            )
        if given is None and suffix in ("txt", "tsv", "tmx", "xml"):
            raise UserError(f"{path}: add --{side}-lang CODE, such as --{side}-lang en")
        codes.append(suffix if given is None else given)
    if codes[0] == codes[1] and None in (args.source_lang, args.target_lang):
        raise UserError(
            f"both languages are {codes[0]!r}; add --source-lang and --target-lang (the same code "
            "twice for summarization)"
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
    args: argparse.Namespace,
    languages: tuple[str, str],
    raw: dict[str, list[dict[str, Any]]],
    texts: dict[str, list[PairPath]],
) -> str:
    corpus = _survey(texts["train"])
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
        *_raw_lines(raw),
        *_lengths(languages),
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
        *_validation(bool(texts["valid"]), every),
    ]
    return "\n".join(lines) + "\n"


def _lengths(languages: tuple[str, str]) -> list[str]:
    if languages[0] != languages[1]:
        longest = _line("  max_source_length: 128", "in subwords; longer pairs are not trained on")
        return [longest, "  max_target_length: 128"]
    return [  # summarization
        _line("  max_source_length: 512", "in subwords"),
        "  max_target_length: 128",
        _line("  long_pairs: truncate_source", "longer sources are cut, not left out"),
        _line("  clean: {preset: summarization}", "no limits of length and ratio"),
    ]


def _fine_tuning(
    args: argparse.Namespace,
    base: Base,
    languages: tuple[str, str],
    raw: dict[str, list[dict[str, Any]]],
    texts: dict[str, list[PairPath]],
) -> str:
    if args.experts:
        raise UserError("--experts: the model is that of --from-model; set model.moe in the file")
    corpus = _survey(texts["train"])
    name = args.name or f"{base.folder.name}-{'-'.join(languages)}"
    text = Text(corpus.pairs, corpus.tokens, args.freeze)
    lines = fine_tuning(base, name, languages, _raw_lines(raw), text)
    lines += _validation(bool(texts["valid"]), max(50, corpus.tokens // 4096 // 4))
    return "\n".join([*lines, *generation_lines(base)]) + "\n"


def _line(setting: str, comment: str) -> str:
    return f"{setting:<31} # {comment}"


def _raw_lines(raw: dict[str, list[dict[str, Any]]]) -> list[str]:
    folder = _whole_folder(raw)
    if folder is not None and not raw["valid"] and not raw["test"]:
        return [_line(f"  raw: {_text(folder)}", "has the splits by name")]
    return [
        _line("  raw:", "line n of one side translates line n of the other"),
        *([] if folder is None else [f"    folder: {_text(folder)}"]),
        *chain.from_iterable(
            _split(split, entries)
            for split, entries in raw.items()
            if folder is None or split != "train"
        ),
    ]


def _split(split: str, entries: list[dict[str, Any]]) -> list[str]:
    written = [
        f"{{{', '.join(f'{key}: {_value(value)}' for key, value in entry.items())}}}"
        for entry in entries
    ]
    if len(written) == 1:
        return [f"    {split}: {written[0]}"]
    return [f"    {split}:", *(f"      - {entry}" for entry in written)] if written else []


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return _text(value) if isinstance(value, str) else json.dumps(value)


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
