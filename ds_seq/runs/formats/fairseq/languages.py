"""Languages of a multilingual model of fairseq, as options of its vocabulary.

`translation_multi_simple_epoch`, with which M2M-100 was trained, adds a symbol for each language to
the dictionary, and puts one of them in front of sources and targets. `denoising`, with which BART
was trained, adds one for what is masked, and puts the start symbol in front of both; so does
`masked_lm`, with which RoBERTa was.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_seq.compat.fairseq.masked_models import WITH_MASK
from ds_seq.errors import UserError
from ds_seq.plugins import nearest
from ds_seq.text.vocab_file import read_vocab_file

_TASK = "translation_multi_simple_epoch"
DENOISING = "denoising"
_MASK = "<mask>"
_STYLES = {"multilingual": "__{}__", "mbart": "[{}]"}


def language_options(
    arguments: Mapping[str, Any], pair: tuple[str, str], names: Path | None
) -> dict[str, Any]:
    """Return the options of `data.vocab.fairseq` that the languages need; none if there is no task.

    Args:
        arguments: arguments of the checkpoint.
        pair: languages of source and target.
        names: file with the languages, one on each line, if the training had one.

    Raises:
        UserError: the languages are unknown, do not include the pair, or are marked in a way that
            cannot be imported.
    """
    if arguments.get("task") == DENOISING:
        return dict(WITH_MASK)
    if arguments.get("task") != _TASK:
        if names is not None:
            raise UserError(f"--lang-dict: the checkpoint is of no model of --task {_TASK}")
        return {}
    _check_supported(arguments)
    languages = _languages(arguments, names)
    for code, option in zip(pair, ("--source-lang", "--target-lang"), strict=True):
        if code not in languages:
            raise UserError(
                f"{option} {code}: no language of the checkpoint{nearest(code, languages)}; there "
                f"are {', '.join(languages)}"
            )
    form = _STYLES[arguments.get("lang_tok_style") or "multilingual"]
    symbols = [form.format(language) for language in languages]
    if form == _STYLES["mbart"]:
        symbols.append(_MASK)
    of_source, of_target = _places(arguments)
    options: dict[str, Any] = {"added_symbols": symbols}
    if of_source:
        options["source_opening"] = form.format(pair[0] if of_source == "src" else pair[1])
    if of_target:
        options["target_opening"] = form.format(pair[1])
    return options


def _check_supported(arguments: Mapping[str, Any]) -> None:
    style = arguments.get("lang_tok_style") or "multilingual"
    if style not in _STYLES:
        raise UserError(f"--lang-tok-style {style}: cannot be imported; only {', '.join(_STYLES)}")
    if arguments.get("lang_tok_replacing_bos_eos"):
        raise UserError("--lang-tok-replacing-bos-eos: cannot be imported")
    kinds = arguments.get("langtoks_specs") or ["main"]
    if list(kinds) not in (["main"], ["m", "a", "i", "n"]):
        raise UserError(f"--langtoks-specs {kinds}: only main can be imported")


def _languages(arguments: Mapping[str, Any], names: Path | None) -> list[str]:
    """Return the languages in the order of their symbols."""
    if names is not None:
        lines = read_vocab_file(names).decode("utf-8", "replace").splitlines()
        return [line.strip() for line in lines if line.strip()]
    if arguments.get("lang_dict"):
        raise UserError(
            f"the checkpoint takes its languages from {arguments['lang_dict']}; give that file as "
            "--lang-dict"
        )
    given = _words(arguments.get("langs"))
    pairs = _words(arguments.get("lang_pairs"))
    found = given or sorted({code for pair in pairs for code in pair.split("-")})
    if not found:
        raise UserError("the checkpoint lists no languages; give them as --lang-dict FILE")
    return found


def _words(value: Any) -> list[str]:
    words = value.split(",") if isinstance(value, str) else value or []
    return [str(word).strip() for word in words]


def _places(arguments: Mapping[str, Any]) -> tuple[str | None, bool]:
    """Return what is in front of sources, `src` or `tgt`, and whether targets begin with theirs."""
    main = (arguments.get("langtoks") or {}).get("main")
    if main:
        return main[0], bool(main[1])
    return arguments.get("encoder_langtok"), bool(arguments.get("decoder_langtok"))
