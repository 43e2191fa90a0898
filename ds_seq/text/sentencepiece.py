"""SentencePiece models with fairseq's order of special symbols.

Kudo and Richardson, 2018, "SentencePiece: A simple and language independent subword tokenizer
and detokenizer for Neural Text Processing", https://arxiv.org/abs/1808.06226
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import sentencepiece as spm
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from ds_seq.errors import UserError
from ds_seq.names import IDENTITY, SPECIAL_PIECES
from ds_seq.text.normalize import Normalizer
from ds_seq.text.sentencepiece_training import BOS_ID, EOS_ID, PAD_ID, UNK_ID, train_model
from ds_seq.text.tokenizer import SPACE, Symbols
from ds_seq.text.vocab_file import read_vocab_file, save_tokenizer


class SentencePieceTokenizer:
    """A `Tokenizer` that converts between text and subword ids with a SentencePiece model.

    An unknown character is decoded as SentencePiece's mark U+2047 to make it visible; `<s>`,
    `<pad>` and `</s>` are omitted from decoded text. The ids of a line that starts with a user
    symbol, such as the language tag `<2de>`, start with the id of that symbol.

    A model has a rule by which it rewrites text before it splits it. Rules other than `identity`
    also fold spaces; see `Normalizer`. Vocabularies of ds_seq 0.1 have the rule `nmt_nfkc`.

    Args:
        model: bytes of a SentencePiece model file.
        name: name of the model in error messages, normally its path.
        normalizer: applied to text before it is encoded.

    Attributes:
        symbols: fairseq's special symbols: `</s>` also starts the decoder input, `<s>` is unused.
        fingerprint: differs between models that encode the same text differently.
        tag_ids: ids of the user symbols.
        special_ids: ids of the symbols that no text contains, such as `<mask>`.
        normalization: name of the rule by which the model rewrites text, `identity` if it does not.

    Raises:
        UserError: this is not a SentencePiece model, or its special symbols are not in fairseq's
            order.
    """

    symbols = Symbols(pad=PAD_ID, eos=EOS_ID, unk=UNK_ID, start=EOS_ID, bos=BOS_ID)

    def __init__(
        self, model: bytes, name: str = "vocabulary", normalizer: Normalizer | None = None
    ) -> None:
        self._model = model
        self._name = name
        normalizer = normalizer or Normalizer(nfkc=False, fold_spaces=False)
        self._processor = spm.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise UserError(f"{name}: is not a SentencePiece model; train it again") from None
        first_pieces = [self._processor.IdToPiece(i) for i in range(min(4, len(self)))]
        if first_pieces != list(SPECIAL_PIECES):
            raise UserError(
                f"{name}: the first four pieces are {first_pieces}, but must be "
                f"{list(SPECIAL_PIECES)}; train the model with `ds-seq prepare` or "
                "prepare_data/train_vocab.py"
            )
        proto = ModelProto.FromString(model)
        self.tag_ids = _ids_of(proto, ModelProto.SentencePiece.USER_DEFINED)
        self.special_ids = _ids_of(proto, ModelProto.SentencePiece.CONTROL)
        rule = proto.normalizer_spec
        # the map of the rule, and not its name, is what SentencePiece applies
        self.normalization: str = rule.name if rule.precompiled_charsmap else IDENTITY
        if rule.remove_extra_whitespaces:
            normalizer = replace(normalizer, fold_spaces=True)
        self._normalizer = normalizer
        space = self._processor.PieceToId(SPACE)
        self._space_id = None if space == UNK_ID or not self.tag_ids else space
        # Shards made before symbols came first count as shards of another vocabulary.
        self.fingerprint = possible_fingerprints(model)[self._space_id is not None]

    @classmethod
    def train(
        cls,
        files: Sequence[str | Path],
        *,
        size: int,
        user_symbols: Sequence[str] = (),
        normalizer: Normalizer | None = None,
        **options: Any,
    ) -> SentencePieceTokenizer:
        """Train a tokenizer; see `TokenizerKind.train`. The options are those of `train_model`."""
        normalizer = normalizer or Normalizer(nfkc=False, fold_spaces=False)
        model = train_model(files, size, normalizer, user_symbols=user_symbols, **options)
        return cls(model, normalizer=normalizer)

    @classmethod
    def from_bytes(
        cls, content: bytes, *, normalizer: Normalizer | None = None, name: str = "vocabulary"
    ) -> SentencePieceTokenizer:
        """Restore a tokenizer from the bytes of a model file; see `TokenizerKind.from_bytes`."""
        return cls(content, name, normalizer)

    @classmethod
    def load(cls, path: str | Path, normalizer: Normalizer | None = None) -> SentencePieceTokenizer:
        """Read a SentencePiece model file."""
        return cls(read_vocab_file(path), str(path), normalizer)

    def save(self, path: str | Path) -> None:
        """Write the model byte for byte; an existing file is replaced atomically."""
        save_tokenizer(self, path)

    def to_bytes(self) -> bytes:
        """Return the bytes of the model file."""
        return self._model

    def __reduce__(self) -> tuple[type[SentencePieceTokenizer], tuple[bytes, str, Normalizer]]:
        return SentencePieceTokenizer, (self._model, self._name, self._normalizer)

    def __len__(self) -> int:
        return int(self._processor.GetPieceSize())

    def normalize(self, text: str) -> str:
        """Return the text as the model reads it; see `Tokenizer.normalize`."""
        return self._normalizer(text)

    def rewrite(self, text: str) -> str:
        """Return the normalized text as the rule of the model rewrites it."""
        return str(self._processor.Normalize(self.normalize(text))).replace(SPACE, " ").strip(" ")

    def encode(self, text: str) -> list[int]:
        """Normalize and encode a line; see `Tokenizer.encode`."""
        return self._symbol_first(list(self._processor.EncodeAsIds(self.normalize(text))))

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """Encode many lines; see `encode`."""
        # one thread, because text is encoded in as many processes as there should be
        encoded: list[list[int]] = list(
            self._processor.EncodeAsIds(self._normalized(lines), num_threads=1)
        )
        if self._space_id is None:
            return encoded
        return [self._symbol_first(ids) for ids in encoded]

    def _normalized(self, lines: Sequence[str]) -> list[str]:
        return self._normalizer.lines(lines)

    def _symbol_first(self, ids: list[int]) -> list[int]:
        """Drop the piece of a lone space that SentencePiece puts before a user symbol."""
        opens = len(ids) > 1 and ids[0] == self._space_id and ids[1] in self.tag_ids
        return ids[1:] if opens else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the plain text of ids; special symbols except `<unk>` are omitted."""
        text: str = self._processor.DecodeIds([int(i) for i in ids if i > EOS_ID])
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the pieces of ids, special symbols included."""
        return [self._processor.IdToPiece(int(i)) for i in ids]

    def split_lines(self, lines: Sequence[str]) -> list[list[str]]:
        """Return the pieces of the ids of `encode_lines`, spelled as in the text.

        They differ from `pieces` only for unknown text, which is written out, with spaces marked
        as in the other pieces.
        """
        split: list[list[str]] = list(self._processor.EncodeAsPieces(self._normalized(lines)))
        if self._space_id is None:
            return split
        return [pieces[1:] if self._symbol_second(pieces) else pieces for pieces in split]

    def _symbol_second(self, pieces: list[str]) -> bool:
        """Return whether `_symbol_first` drops the first of these pieces."""
        ids = [int(self._processor.PieceToId(piece)) for piece in pieces[:2]]
        return len(self._symbol_first(ids)) < len(ids)

    def join(self, pieces: Sequence[str]) -> str:
        """Return the plain text of pieces as returned by `split_lines` and `pieces`."""
        text: str = self._processor.DecodePieces(list(pieces))
        return text


def stored_processor(content: str, name: str) -> spm.SentencePieceProcessor:
    """Load a model that a tokenizer of another toolkit stores as base64.

    Raises:
        UserError: it is no model; `name` is that of the vocabulary.
    """
    processor = spm.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(base64.b64decode(content, validate=True))
    except (RuntimeError, ValueError):
        raise UserError(f"{name}: is not a SentencePiece model; give another file") from None
    return processor


def possible_fingerprints(model: bytes) -> tuple[str, str]:
    """Return the fingerprints of a model without and with user symbols that come first."""
    plain, first = (hashlib.sha256(model + order) for order in (b"", b"user symbols first"))
    return plain.hexdigest(), first.hexdigest()


def _ids_of(model: ModelProto, kind: int) -> frozenset[int]:
    """Return the ids of a model's pieces of a kind, which its processor does not report."""
    return frozenset(index for index, piece in enumerate(model.pieces) if piece.type == kind)
