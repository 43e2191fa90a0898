"""Train a SentencePiece model on text."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece as spm

from ds_seq.errors import UserError
from ds_seq.text.lines import decode_line, open_bytes

BOS_ID, PAD_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
"""fairseq's order of special symbols."""


def train_model(  # noqa: PLR0913  (a builder: one argument per trainer option)
    files: Sequence[str | Path],
    size: int,
    model_type: str,
    character_coverage: float,
    input_sentence_size: int,
    seed: int = 1,
    user_symbols: Sequence[str] = (),
    num_threads: int = 4,
) -> bytes:
    """Train one SentencePiece model on all files together.

    Args:
        files: UTF-8 text files, one sentence per line; normally both sides of the training text.
        size: vocabulary size, the four special symbols included.
        model_type: `unigram` or `bpe`.
        character_coverage: fraction of character occurrences covered by pieces; 1.0 for alphabets,
            0.9995 for scripts with thousands of characters.
        input_sentence_size: number of sentences sampled at random for training; 0 means all.
        seed: seed of this sample.
        user_symbols: pieces that are never split, for example language tags.
        num_threads: number of trainer threads. It affects the result, because sums of
            probabilities depend on the order of addition; keep it fixed for reproducible files.

    Returns:
        The bytes of a model file.

    Raises:
        UserError: there is no text, or `size` does not suit it.
    """
    sentences = _Sentences(files, input_sentence_size, seed)
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.Train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=size,
            model_type=model_type,
            character_coverage=character_coverage,
            train_extremely_large_corpus=model_type == "unigram" and input_sentence_size == 0,
            user_defined_symbols=list(user_symbols),
            num_threads=num_threads,
            bos_id=BOS_ID,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise sentences.error or UserError(_explain(str(error), size)) from None
    return model.getvalue()


class _Sentences:
    """Iterable over the training text: all of it, or a uniform sample that depends on a seed.

    SentencePiece's own sampling always uses the same seed. Its bindings also lose the type of an
    exception raised while reading, so this exception is stored in `error`.
    """

    def __init__(self, files: Sequence[str | Path], sample_size: int, seed: int) -> None:
        self.error: UserError | None = None
        self._files = [Path(path) for path in files]
        self._sample_size = sample_size
        self._random = random.Random(seed)

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._sample() if self._sample_size else self._read()
        except UserError as error:
            self.error = error
            raise

    def _read(self) -> Iterator[str]:
        empty = True
        for path in self._files:
            with open_bytes(path) as file:
                for number, line in enumerate(file, 1):
                    if text := decode_line(line, path, number).strip():
                        yield text
                        empty = False
        if empty:
            names = ", ".join(str(path) for path in self._files)
            raise UserError(f"no text to train a vocabulary on in {names or 'an empty list'}")

    def _sample(self) -> list[str]:
        """Draw a sample in one pass by reservoir sampling (algorithm R of Vitter, 1985)."""
        sample: list[str] = []
        for seen, text in enumerate(self._read()):
            if seen < self._sample_size:
                sample.append(text)
            elif (slot := self._random.randint(0, seen)) < self._sample_size:
                sample[slot] = text
        return sample


def _explain(message: str, size: int) -> str:
    """Turn a message of the trainer into one that names the key to change."""
    if bound := re.search(r"value <= (\d+)", message):
        return (
            f"the training text is too small for a vocabulary of {size:,} pieces; "
            f"set data.vocab.size to at most {int(bound[1]):,}"
        )
    if bound := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"{size:,} pieces are too few for the characters of the training text; "
            f"set data.vocab.size to more than {int(bound[1]):,} or lower "
            "data.vocab.character_coverage"
        )
    return f"SentencePiece could not train a vocabulary of {size:,} pieces: {message}"
