"""SentencePiece vocabulary with fairseq's order of special symbols.

Kudo and Richardson, 2018, "SentencePiece: A simple and language independent subword tokenizer
and detokenizer for Neural Text Processing", https://arxiv.org/abs/1808.06226
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece as spm
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from ds_seq.data.text import decode_line, open_bytes
from ds_seq.errors import UserError
from ds_seq.text.tokenizer import Symbols

BOS_ID, PAD_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
_SPECIAL_PIECES = {BOS_ID: "<s>", PAD_ID: "<pad>", EOS_ID: "</s>", UNK_ID: "<unk>"}
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's sign for a space, also before a line


class Vocab:
    """Text <-> subword ids.

    An unknown character is decoded as SentencePiece's mark U+2047, so that a reader sees it;
    ``<s>``, ``<pad>`` and ``</s>`` are left out of decoded text. A line that opens with a user
    symbol, such as the language tag ``<2de>``, has that symbol's id first.

    Args:
        model: bytes of a SentencePiece model file.
        name: what to call the model in error messages, normally its path.

    Attributes:
        user_symbol_ids: ids of the user symbols.
        hash: tells vocabularies apart that do not give the same ids for the same text.
    """

    def __init__(self, model: bytes, name: str = "vocabulary") -> None:
        self._model = model
        self._name = name
        self._processor = spm.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise UserError(f"{name}: is not a SentencePiece model; train it again") from None
        found = {i: self._processor.IdToPiece(i) for i in range(min(4, len(self)))}
        if found != _SPECIAL_PIECES:
            raise UserError(
                f"{name}: the first four pieces are {list(found.values())}, but must be "
                f"{list(_SPECIAL_PIECES.values())}; train the model with `ds-seq prepare` or "
                "prepare_data/train_vocab.py"
            )
        self.user_symbol_ids = _user_symbol_ids(model)
        space = self._processor.PieceToId(_SPACE)
        self._space_id = None if space == UNK_ID or not self.user_symbol_ids else space
        # Shards of before symbols came first are shards of another vocabulary.
        rule = b"" if self._space_id is None else b"user symbols first"
        self.hash = hashlib.sha256(model + rule).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> Vocab:
        """Reads a SentencePiece model file."""
        try:
            return cls(Path(path).read_bytes(), str(path))
        except FileNotFoundError:
            raise UserError(
                f"{path}: no such vocabulary; make it with `ds-seq prepare` or "
                "prepare_data/train_vocab.py"
            ) from None

    def save(self, path: str | Path) -> None:
        """Writes the model, unchanged to the byte; an existing file is replaced at once."""
        _write_atomically(Path(path), self._model)

    def to_bytes(self) -> bytes:
        """The model as `save` writes it."""
        return self._model

    def __reduce__(self) -> tuple[type[Vocab], tuple[bytes, str]]:
        return Vocab, (self._model, self._name)

    def __len__(self) -> int:
        return int(self._processor.GetPieceSize())

    @property
    def bos_id(self) -> int:
        """Id of ``<s>``; kept for fairseq's order of symbols, never put into a sentence."""
        return BOS_ID

    @property
    def pad_id(self) -> int:
        """Id of the padding symbol."""
        return PAD_ID

    @property
    def eos_id(self) -> int:
        """Id of the end of a sentence, which also starts the decoder's input."""
        return EOS_ID

    @property
    def unk_id(self) -> int:
        """Id of every character that the vocabulary does not know."""
        return UNK_ID

    @property
    def symbols(self) -> Symbols:
        """The ids above as values; the end symbol starts the decoder."""
        return Symbols(pad=PAD_ID, eos=EOS_ID, unk=UNK_ID, start=EOS_ID, bos=BOS_ID)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a sentence, without the end symbol."""
        return self._symbol_first(list(self._processor.EncodeAsIds(text)))

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """Like `encode`, for many lines at once."""
        encoded: list[list[int]] = list(self._processor.EncodeAsIds(list(lines)))
        if self._space_id is None:
            return encoded
        return [self._symbol_first(ids) for ids in encoded]

    def _symbol_first(self, ids: list[int]) -> list[int]:
        """Drops the piece of a lone space that SentencePiece puts before a user symbol."""
        opens = len(ids) > 1 and ids[0] == self._space_id and ids[1] in self.user_symbol_ids
        return ids[1:] if opens else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns plain text for ids; special symbols but ``<unk>`` vanish."""
        text: str = self._processor.DecodeIds([int(i) for i in ids if i > EOS_ID])
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Returns the pieces behind ids, special symbols included."""
        return [self._processor.IdToPiece(int(i)) for i in ids]

    def split_lines(self, lines: Sequence[str]) -> list[list[str]]:
        """Returns the pieces that the ids of `encode_lines` stand for, spelt as in the text.

        They differ from `pieces` where the vocabulary knows none: what it does not know is written
        out, with the spaces marked as in the others.
        """
        split: list[list[str]] = list(self._processor.EncodeAsPieces(list(lines)))
        if self._space_id is None:
            return split
        return [pieces[1:] if self._symbol_second(pieces) else pieces for pieces in split]

    def _symbol_second(self, pieces: list[str]) -> bool:
        """Whether `_symbol_first` drops the first of these pieces."""
        ids = [int(self._processor.PieceToId(piece)) for piece in pieces[:2]]
        return len(self._symbol_first(ids)) < len(ids)

    def join(self, pieces: Sequence[str]) -> str:
        """Returns plain text for pieces such as `split_lines` and `pieces` give."""
        text: str = self._processor.DecodePieces(list(pieces))
        return text


def train_vocab(  # noqa: PLR0913  (a builder: one argument for each choice of the trainer)
    files: Sequence[str | Path],
    model_path: str | Path,
    size: int,
    model_type: str = "unigram",
    character_coverage: float = 1.0,
    input_sentence_size: int = 0,
    seed: int = 1,
    user_symbols: Sequence[str] = (),
    num_threads: int = 4,
) -> Vocab:
    """Trains one SentencePiece model on all files together and writes it.

    Args:
        files: text files, one sentence a line, UTF-8; normally both sides of the training text.
        model_path: where the model goes; nothing is written when training fails.
        size: number of pieces, the four special symbols included.
        model_type: ``unigram`` or ``bpe``.
        character_coverage: share of the characters' occurrences that get a piece of their own;
            1.0 for alphabets, 0.9995 for scripts with thousands of signs.
        input_sentence_size: at most so many sentences, drawn at random, are looked at; 0 = all.
        seed: of that draw.
        user_symbols: pieces that are never split, for example language tags.
        num_threads: threads of the trainer. It belongs to the result: sums of probabilities
            depend on the order of adding, so keep it fixed where files are to be equal.

    Returns:
        The vocabulary, as it was written.
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
    vocab = Vocab(model.getvalue(), str(model_path))
    vocab.save(model_path)
    return vocab


class _Sentences:
    """The text for the trainer: everything, or a uniform sample of it that depends on a seed.

    SentencePiece can draw a sample itself, but always the same one. Its bindings also lose the
    type of an exception that reading raises, so that exception is kept in ``error``.
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
        """Reservoir sampling (algorithm R of Vitter, 1985): one pass, only the sample is kept."""
        sample: list[str] = []
        for seen, text in enumerate(self._read()):
            if seen < self._sample_size:
                sample.append(text)
            elif (slot := self._random.randint(0, seen)) < self._sample_size:
                sample[slot] = text
        return sample


def _user_symbol_ids(model: bytes) -> frozenset[int]:
    """Ids of the user symbols of a SentencePiece model, which its processor does not tell."""
    user_defined = ModelProto.SentencePiece.USER_DEFINED
    pieces = ModelProto.FromString(model).pieces
    return frozenset(index for index, piece in enumerate(pieces) if piece.type == user_defined)


def _explain(message: str, size: int) -> str:
    """Turns the trainer's message into one that names the key to change."""
    if bound := re.search(r"value <= (\d+)", message):
        return (
            f"the training text is too small for a vocabulary of {size:,} pieces; "
            f"set data.vocab.size to at most {int(bound[1]):,}"
        )
    if bound := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"a vocabulary of {size:,} pieces does not hold the characters of the training text; "
            f"set data.vocab.size to more than {int(bound[1]):,} or lower "
            "data.vocab.character_coverage"
        )
    return f"SentencePiece could not train a vocabulary of {size:,} pieces: {message}"


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
