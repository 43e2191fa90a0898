"""The vocabulary besides a model for CTranslate2, and how to translate with both."""

from __future__ import annotations

from pathlib import Path

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.runs.formats.huggingface.origin import Origin, languages_of
from ds_seq.text.huggingface import HuggingFaceTokenizer
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.text.vocab_file import save_tokenizers, vocab_paths

_LONGEST = 256  # tokens of a translation, CTranslate2's default


def is_framed(tokenizers: Tokenizers) -> bool:
    """Return whether CTranslate2 is given sources with the symbols around them, the end included.

    The tokenizers of transformers return them like this. Otherwise CTranslate2 adds the end.
    """
    return isinstance(tokenizers.source, HuggingFaceTokenizer)


def save_vocabulary(tokenizers: Tokenizers, folder: Path, config: ExperimentConfig) -> None:
    """Write the vocabulary for ds_seq, and for transformers if it is one of theirs."""
    save_tokenizers(tokenizers, folder, config.data.vocab.joint)
    origin = Origin(tokenizers)
    if origin.kind is not None:
        origin.save_vocabulary(folder, languages_of(config))


def example(tokenizers: Tokenizers, config: ExperimentConfig) -> str:
    """Return an example in Python.

    Args:
        tokenizers: tokenizers of source and target.
        config: experiment of the model, whose name is that of the folder.
    """
    name, longest = config.name, min(config.data.max_target_length, _LONGEST)
    symbols, target = tokenizers.symbols, tokenizers.target
    opening = target.pieces(symbols.opening)
    never = [[piece] for piece in target.pieces(sorted(symbols.never_generated))]
    options = f", beam_size={config.generation.beam}, max_decoding_length={longest - 1}"
    options += f", target_prefix=[{opening}]" if opening else ""
    options += f", suppress_sequences={never}" if never else ""
    first = f"[{len(opening)}:]" if opening else ""
    libraries, readers, pieces, text = "", [], "[...]  # pieces of the source", "print(found)"
    if isinstance(tokenizers.source, HuggingFaceTokenizer):
        libraries = "from transformers import AutoTokenizer"
        readers = [f'tokenizer = AutoTokenizer.from_pretrained("{name}")']
        pieces = f'[*tokenizer.tokenize("..."), {target.pieces([symbols.eos])[0]!r}]'
        if tokenizers.source.symbols.opening or tokenizers.source.symbols.closing:
            pieces = 'tokenizer.convert_ids_to_tokens(tokenizer("...").input_ids)'
        text = "print(tokenizer.convert_tokens_to_string(found))"
    elif isinstance(tokenizers.source, SentencePieceTokenizer):
        libraries = "from sentencepiece import SentencePieceProcessor"
        is_joint = tokenizers.source is tokenizers.target
        readers = [
            f'{side} = SentencePieceProcessor("{path}")'
            for side, path in zip(
                ("source", "target"), vocab_paths(name, is_joint) * (1 + is_joint), strict=True
            )
        ]
        pieces = 'source.encode("...", out_type=str)'
        text = "print(target.decode(found))"
    lines = [
        "import ctranslate2",
        *([libraries, ""] if libraries else [""]),
        *readers,
        f'translator = ctranslate2.Translator("{name}")',
        f"pieces = {pieces}",
        f"(result,) = translator.translate_batch([pieces]{options})",
        f"found = result.hypotheses[0]{first}",
        text,
    ]
    return "\n".join(lines)
