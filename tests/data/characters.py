"""A tokenizer from outside ds_seq: a line is its characters, a tag such as ``<2de>`` is one id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ds_seq.errors import UserError
from ds_seq.text.normalize import Normalizer
from ds_seq.text.tokenizer import SPACE, Symbols

EOS, PAD, UNK = range(3)
_SPECIAL = ["[end]", "[pad]", "[unk]"]


class CharacterTokenizer:
    """Its ids are not those of fairseq, and there is no symbol that begins a sentence."""

    symbols = Symbols(pad=PAD, eos=EOS, unk=UNK, start=EOS)

    def __init__(self, pieces: Sequence[str], num_tags: int, normalizer: Normalizer) -> None:
        self._pieces = list(pieces)
        self._ids = {piece: i for i, piece in enumerate(pieces)}
        self._normalizer = normalizer
        self._num_tags = num_tags
        self.tag_ids = frozenset(range(len(_SPECIAL), len(_SPECIAL) + num_tags))
        self.fingerprint = hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def train(
        cls,
        files: Sequence[Path],
        *,
        size: int,
        user_symbols: Sequence[str],
        normalizer: Normalizer,
        upper: bool,
    ) -> CharacterTokenizer:
        text = "".join(path.read_text(encoding="utf-8") for path in files).replace(" ", SPACE)
        characters = set((text + text.upper() if upper else text).replace("\n", ""))
        pieces = [*_SPECIAL, *user_symbols, *sorted(characters)]
        return cls(pieces[:size], len(user_symbols), normalizer)

    @classmethod
    def from_bytes(cls, content: bytes, *, normalizer: Normalizer, name: str) -> CharacterTokenizer:
        try:
            pieces, num_tags = json.loads(content)
        except ValueError:
            raise UserError(f"{name}: is no list of characters") from None
        return cls(pieces, num_tags, normalizer)

    def to_bytes(self) -> bytes:
        return json.dumps([self._pieces, self._num_tags]).encode()

    def __len__(self) -> int:
        return len(self._pieces)

    def normalize(self, text: str) -> str:
        return self._normalizer(text)

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(piece, UNK) for piece in self._split(text)]

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        return [self.encode(line) for line in lines]

    def decode(self, ids: Sequence[int]) -> str:
        return self.join(self.pieces([i for i in ids if i not in (EOS, PAD)]))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._pieces[i] for i in ids]

    def split_lines(self, lines: Sequence[str]) -> list[list[str]]:
        return [self._split(line) for line in lines]

    def join(self, pieces: Sequence[str]) -> str:
        return "".join(pieces).replace(SPACE, " ").strip()

    def _split(self, text: str) -> list[str]:
        text = self.normalize(text)
        for tag in self.pieces(sorted(self.tag_ids)):
            if text.startswith(tag):
                return [tag, *text.removeprefix(tag).strip().replace(" ", SPACE)]
        return list(text.replace(" ", SPACE))
