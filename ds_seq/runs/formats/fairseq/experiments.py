"""The experiment of an imported model of fairseq, and its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.data import UNKNOWN_LANGUAGE
from ds_seq.compat.fairseq.language_models import LM_TASK
from ds_seq.compat.fairseq.masked_models import WITH_MASK, is_masked_model, masking
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import read_experiment
from ds_seq.errors import UserError
from ds_seq.runs.formats.fairseq.arguments import is_language_model
from ds_seq.runs.formats.fairseq.languages import DENOISING, language_options
from ds_seq.text.build import train_tokenizers
from ds_seq.text.fairseq_dict import Dictionary
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.text.vocab_file import read_vocab_file

_GENERATION = {"max_len_a": 0.0, "max_len_b": 200}
_FEWEST_TOKENS = 4096  # of a batch, if the run is trained further


@dataclass(frozen=True)
class Vocabulary:
    """The files of the vocabulary.

    Attributes:
        dictionary: `dict.txt` of the source, or of both sides.
        target: that of the target, if it is another one.
        codes: merges of subword-nmt or fastBPE.
        sentencepiece: SentencePiece model.
        moses: whether text is tokenized by Moses' rules.
        languages: list of the languages of a multilingual model, if the training had one.
        user_symbols: symbols of the source's dictionary that are never split.
    """

    dictionary: Path
    target: Path | None
    codes: Path | None
    sentencepiece: Path | None
    moses: bool
    languages: Path | None = None
    user_symbols: Sequence[str] = ()

    def section(self, path: Path, more: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of `data.vocab` for one of the dictionaries; `more` are options of it."""
        files: dict[str, Any] = {"dictionary": str(path)}
        files |= {} if self.codes is None else {"codes": str(self.codes)}
        files |= {} if self.sentencepiece is None else {"sentencepiece": str(self.sentencepiece)}
        files |= {"moses": True} if self.moses else {}
        size = len(Dictionary.parse(read_vocab_file(path), str(path)).extended(_added(more)))
        return {"fairseq": {**files, **more}, "size": size}


@dataclass(frozen=True)
class Described:
    """What is known of a model before its weights are read.

    Attributes:
        given: the arguments that describe the model.
        arguments: all arguments.
        model: the section `model` of it.
        vocabulary: files of its vocabulary.
        name: name of the new run.
        languages: language codes of source and target; None: those of the checkpoint.
    """

    given: Given
    arguments: Mapping[str, Any]
    model: dict[str, Any]
    vocabulary: Vocabulary
    name: str
    languages: tuple[str | None, str | None]

    def experiment(self) -> tuple[ExperimentConfig, Tokenizers]:
        """Return the experiment of the imported model, and its tokenizers.

        Raises:
            UserError: a file of the vocabulary is damaged, or the model is impossible.
        """
        is_text = is_language_model(self.given) or is_masked_model(self.given)
        parts = self._of_text() if is_text else self._of_pairs()
        data = parts.pop("data")
        smoothing = 0.0 if self.model.get("adaptive") else self.given["label_smoothing"] or 0.0
        config = read_experiment(
            {
                "name": self.name,
                "data": {"dir": f"data/{self.name}", **data},
                "model": self.model,
                "criterion": {"name": "cross_entropy", "label_smoothing": float(smoothing)},
                "train": {"max_tokens": max(_FEWEST_TOKENS, self.model["max_positions"])},
                "generation": _GENERATION,
                **parts,
            }
        )
        return config, train_tokenizers(config.data, [])

    def _of_pairs(self) -> dict[str, Any]:
        """Return the sections that only a translation model has, and `data`."""
        vocabulary, given = self.vocabulary, self.given
        codes = _codes(self.arguments, self.languages)
        more = language_options(self.arguments, codes, vocabulary.languages)
        paths = [vocabulary.dictionary, vocabulary.target or vocabulary.dictionary]
        joint = paths[0] == paths[1] or paths[0].read_bytes() == paths[1].read_bytes()
        sides = [vocabulary.section(path, more) for path in paths]
        if vocabulary.user_symbols:
            sides[0]["user_symbols"] = list(vocabulary.user_symbols)
        parts = sides[0] if joint else {"source": sides[0], "target": sides[1]}
        length = self.model["max_positions"]
        return {
            "data": {
                "source_lang": codes[0],
                "target_lang": codes[1],
                "max_source_length": min(length, given["max_source_positions"]),
                "max_target_length": min(length, given["max_target_positions"]),
                "vocab": {"name": "fairseq_dict", **parts},
            },
            "validation": {"metrics": [], "best": "loss"},
        }

    def _of_text(self) -> dict[str, Any]:
        """Return the sections that only a language model has, and `data`."""
        vocabulary, length = self.vocabulary, self.model["max_positions"]
        if vocabulary.target is not None or self.languages[1] is not None:
            raise UserError(
                "--target-dict, --target-lang: a language model has one side; leave it out"
            )
        is_masked = is_masked_model(self.given)
        has_pieces = bool(vocabulary.codes or vocabulary.sentencepiece)
        section = vocabulary.section(vocabulary.dictionary, WITH_MASK if is_masked else {})
        if vocabulary.user_symbols:
            section["user_symbols"] = list(vocabulary.user_symbols)
        bands = self.model.get("adaptive")
        if bands and bands["cutoffs"][-1:] == [section["size"]]:  # which begins no band
            bands["cutoffs"].pop()
        return {
            "data": {
                "language": self.languages[0] or UNKNOWN_LANGUAGE,
                "vocab": {"name": "fairseq_dict", **section},
            },
            "task": {
                **(masking(self.arguments, has_pieces) if is_masked else {"name": LM_TASK}),
                "block_tokens": min(length, self.arguments.get("tokens_per_sample") or length),
            },
        }


def _added(options: Mapping[str, Any]) -> Sequence[str]:
    return options.get("added_symbols", ())


def _codes(
    arguments: Mapping[str, Any], languages: tuple[str | None, str | None]
) -> tuple[str, str]:
    """Return the language codes of source and target; a denoising model has one language."""
    if arguments.get("task") == DENOISING:
        source = languages[0] or UNKNOWN_LANGUAGE
        return source, languages[1] or source
    codes = []
    for own, side in zip(languages, ("source", "target"), strict=True):
        code = own or arguments.get(f"{side}_lang")
        if not isinstance(code, str):
            raise UserError(f"the checkpoint names no languages; add --{side}-lang")
        codes.append(code)
    return codes[0], codes[1]
