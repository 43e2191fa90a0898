"""Tokenizers of Hugging Face folders, read without `transformers`.

Three forms are read: `tokenizer.json`, which the package `tokenizers` runs; the SentencePiece
models with a `vocab.json` of Marian and M2M100, for which transformers has no such file; and the
files of FSMT, whose sides have a vocabulary each (`data.vocab.huggingface.side`). Ids are
those of the folder, except that padding, which is always id 1 in ds_seq, trades places with
whatever has id 1 there.

What stands around a text differs by model: BART opens both sides with `<s>`, M2M100 and NLLB with
the language of that side; mBART of 2020 closes sources with theirs. The decoder's first input is
`Symbols.start`: the padding symbol (T5, Marian), or the target language (mBART of 2020).
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from ds_seq.errors import UserError
from ds_seq.plugins import nearest
from ds_seq.records import parse_json, read_limited, record
from ds_seq.text.huggingface_pieces import (
    FAST,
    M2M,
    MARIAN,
    VOCAB,
    FastPieces,
    Pieces,
    SentencePieces,
)
from ds_seq.text.huggingface_sides import MERGES, OF_SIDES, SidedPieces
from ds_seq.text.normalize import Normalizer
from ds_seq.text.sentencepiece_training import PAD_ID
from ds_seq.text.tokenizer import Symbols

_MOST_BYTES = 1 << 28
_SETTINGS = ("config.json", "tokenizer_config.json", "special_tokens_map.json")
_READ = (VOCAB, *MARIAN, M2M, *OF_SIDES.values(), MERGES, *_SETTINGS)
_SIZES = {None: "vocab_size", "source": "src_vocab_size", "target": "tgt_vocab_size"}


@record
class _Stored(TypedDict):
    """Content of `HuggingFaceTokenizer.to_bytes`: files, text or base64, by name."""

    files: dict[str, str]
    source_code: str | None
    target_code: str | None
    side: NotRequired[str]  # whose vocabulary it is, if each side has one
    prefix: NotRequired[str]  # of sources


class HuggingFaceTokenizer:
    """A `Tokenizer` of a Hugging Face folder, for one of the sides.

    Args:
        stored: the files.
        normalizer: applied to text before it is encoded.
        name: name of the vocabulary in error messages.

    Attributes:
        symbols: special symbols of this side.
        fingerprint: differs between tokenizers that encode the same text differently.
        tag_ids: ids of symbols that may start a line; none.
        special_ids: ids of symbols that no text contains, those of all languages included.

    Raises:
        UserError: a file is damaged, or a package is not installed.
    """

    tag_ids: frozenset[int] = frozenset()

    def __init__(self, stored: _Stored, normalizer: Normalizer, name: str) -> None:
        self._stored, self._normalizer, self._name = stored, normalizer, name
        self._config = self._json("config.json")
        self._side: tuple[str, bool] | None = None
        files = stored["files"]
        self._pieces: Pieces
        if "side" in stored:
            self._pieces = SidedPieces(files, name)
        elif FAST in files:
            self._pieces = FastPieces(files[FAST], name)
        else:
            self._pieces = SentencePieces(self._json(VOCAB), files, name)
        pad = self._id("pad_token_id")
        self._traded = {} if pad == PAD_ID else {PAD_ID: pad, pad: PAD_ID}
        self._opening, self._closing = self._pieces.frame(self._id("eos_token_id"))
        bos = self._config.get("bos_token_id")
        languages = set(self._pieces.languages.values())
        # as in M2M100 and NLLB
        self._opens_with_language = self._opening != [bos] and not languages.isdisjoint(
            self._opening
        )
        self.fingerprint = hashlib.sha256(self.to_bytes()).hexdigest()
        self._settle(None)

    def _settle(self, language: int | None) -> None:
        """Set what depends on the side: what stands around a text, and the symbols."""
        first = self._opening
        if self._opens_with_language:
            first = [] if language is None else [language]
        start = self._config.get("decoder_start_token_id")
        last: list[int] = []
        if self._closing and language is not None:
            start, last = language, [language] if self._is_source else []
        bos = self._config.get("bos_token_id")
        self.symbols = Symbols(
            pad=PAD_ID,
            eos=self._ours(self._id("eos_token_id")),
            unk=self._ours(self._unknown()),
            start=self._ours(self._id("eos_token_id") if start is None else int(start)),
            bos=None if bos is None else self._ours(int(bos)),
            opening=tuple(map(self._ours, first)),
            closing=tuple(map(self._ours, last)),
        )
        special = {self.symbols.pad, self.symbols.eos, self.symbols.bos, *self.symbols.opening}
        special |= {self._ours(i) for i in self._pieces.languages.values()}
        self.special_ids = frozenset(special - {None, self.symbols.unk})

    @classmethod
    def train(
        cls,
        files: Sequence[Path],
        *,
        size: int,
        user_symbols: Sequence[str] = (),
        normalizer: Normalizer | None = None,
        **options: Any,
    ) -> HuggingFaceTokenizer:
        """Read a folder; nothing is trained. See `TokenizerKind.train`.

        Args:
            files: not read.
            size: number of ids, those of the model.
            user_symbols: must be empty: the vocabulary cannot grow.
            normalizer: applied to text before it is encoded.
            options: `path`, `source_code`, `target_code`, `source_prefix` and `side` of
                `data.vocab.huggingface`.

        Raises:
            UserError: a file is missing or damaged, or the size is another one.
        """
        path, side = options["path"], options.get("side")
        _check_side(Path(path), side)
        contents = {
            file.name: _content(file)
            for file in tokenizer_files(Path(path))
            if side is None or file.name not in {*OF_SIDES.values()} - {OF_SIDES[side]}
        }
        vocabulary = {FAST, VOCAB} if side is None else {OF_SIDES[side]}
        if "config.json" not in contents or not vocabulary & contents.keys():
            raise UserError(
                f"{path}: has no {'config.json' if 'config.json' not in contents else FAST}; give "
                "a folder that `save_pretrained` of a model and its tokenizer wrote"
            )
        if user_symbols:
            raise UserError(f"data.vocab.user_symbols: {path} cannot get new symbols; remove them")
        stored = _Stored(
            files=contents,
            source_code=options["source_code"],
            target_code=options["target_code"],
        )
        if side is not None:
            stored["side"] = side
        if options.get("source_prefix"):
            stored["prefix"] = options["source_prefix"]
        found = cls(stored, normalizer or _plain(), path)
        if len(found) != size:
            raise UserError(
                f"data.vocab.size: {size:,}, but the model of {path} has {len(found):,} ids; set "
                f"{len(found)}"
            )
        return found

    @classmethod
    def from_bytes(
        cls, content: bytes, *, normalizer: Normalizer | None = None, name: str
    ) -> HuggingFaceTokenizer:
        """Restore a tokenizer from the bytes of `to_bytes`; see `TokenizerKind.from_bytes`."""
        stored = parse_json(content, _Stored, Path(name), "import the model again")
        return cls(stored, normalizer or _plain(), name)

    def to_bytes(self) -> bytes:
        """Return the files of the tokenizer as JSON."""
        return json.dumps(self._stored, ensure_ascii=False, sort_keys=True).encode()

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _restored, (self._stored, self._normalizer, self._name, self._side)

    def for_side(self, language: str, is_source: bool) -> HuggingFaceTokenizer:
        """Return this tokenizer for the text of one side.

        Args:
            language: language code of the experiment, used if no code of the model is set.
            is_source: whether the side is the source.

        Raises:
            UserError: the model needs a symbol for the language and has none of this code.
        """
        other = copy.copy(self)
        other._side = language, is_source
        code = self._stored["source_code" if is_source else "target_code"] or language
        language_id = None
        if self._opens_with_language or self._closing:
            language_id = self._find_language(code, is_source)
        other._settle(language_id)
        return other

    def _find_language(self, code: str, is_source: bool) -> int:
        known = self._pieces.languages
        for name in (code, f"__{code}__", f">>{code}<<"):
            if name in known:
                return known[name]
        close = [name for name in known if name.split("_")[0] == code]
        if len(close) == 1:
            return known[close[0]]
        key = f"data.vocab.huggingface.{'source' if is_source else 'target'}_code"
        shown = ", ".join(sorted(close)) or ", ".join([*sorted(known)[:8], "..."])
        raise UserError(
            f"{self._name}: has no language {code!r}{nearest(code, known)}; set {key} to one of "
            f"its symbols: {shown}"
        )

    @property
    def _is_source(self) -> bool:
        return self._side is not None and self._side[1]

    def __len__(self) -> int:
        return self._id(_SIZES[self._stored.get("side")])

    def normalize(self, text: str) -> str:
        """Return the text as it is read; see `Tokenizer.normalize`."""
        return self._normalizer(text)

    def encode(self, text: str) -> list[int]:
        """Normalize and encode a line; see `Tokenizer.encode`."""
        return self.encode_lines([text])[0]

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """Encode many lines; see `encode`."""
        rows = self._pieces.encode_lines(self._texts(lines), self._is_source)
        if not self._traded:
            return rows
        return [[self._ours(number) for number in row] for row in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the plain text of ids; special symbols except `<unk>` are omitted."""
        return self.join(self.pieces([i for i in map(int, ids) if i not in self.special_ids]))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the piece of each id, special ones included."""
        names = [(i, self._pieces.piece(self._ours(int(i)))) for i in ids]
        return [f"<unused {i}>" if name is None else name for i, name in names]

    def split_lines(self, lines: Sequence[str]) -> list[list[str]]:
        """Return the pieces of each line, unknown ones as the text spells them."""
        return self._pieces.split_lines(self._texts(lines), self._is_source)

    def _texts(self, lines: Sequence[str]) -> list[str]:
        """Return lines as the pieces are made of them."""
        texts = map(self._normalizer, lines)
        return [self.source_prefix + text if text else text for text in texts]

    @property
    def source_prefix(self) -> str:
        """Text in front of every line, if this is the tokenizer of the source."""
        return self._stored.get("prefix", "") if self._is_source else ""

    def join(self, pieces: Sequence[str]) -> str:
        """Return the plain text of pieces as returned by `split_lines` and `pieces`."""
        text = self._pieces.join(pieces, self._is_source)
        return (
            text.removeprefix(self.source_prefix.strip()).lstrip() if self.source_prefix else text
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Content of the folder's `config.json`."""
        return self._config

    @property
    def folder_files(self) -> dict[str, bytes]:
        """The files of the folder that were read, by name."""
        return {
            name: content.encode() if _is_text(name) else base64.b64decode(content)
            for name, content in self._stored["files"].items()
        }

    def _ours(self, number: int) -> int:
        """Return the id in ds_seq of an id of the folder, and the other way round."""
        return self._traded.get(number, number)

    def permutation(self) -> list[int]:
        """Return the id of the folder for each id, to order the rows of embeddings."""
        return [self._ours(number) for number in range(len(self))]

    def _id(self, key: str) -> int:
        value = self._config.get(key)
        if not isinstance(value, int):
            raise UserError(f"{self._name}: config.json: has no {key}; the model cannot be used")
        return value

    def _unknown(self) -> int:
        name = "tokenizer_config.json"
        settings = self._json(name) if name in self._stored["files"] else {}
        token = settings.get("unk_token", "<unk>")
        number = self._pieces.number(token["content"] if isinstance(token, dict) else token)
        # a vocabulary of bytes knows all text
        return self._id("eos_token_id") if number is None else number

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads(self._stored["files"][name])
        except (KeyError, ValueError) as error:
            raise UserError(f"{self._name}: {name} is missing or damaged ({error})") from None
        if not isinstance(content, dict):
            raise UserError(f"{self._name}: {name} is no JSON object; copy it again")
        return content


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of a folder that a tokenizer is made of."""
    names: tuple[str, ...] = _READ
    if (
        not (folder / OF_SIDES["source"]).is_file() and (folder / FAST).is_file()
    ):  # the others are for older programs
        names = (FAST, *_SETTINGS)
    return [folder / name for name in names if (folder / name).is_file()]


def _check_side(folder: Path, side: str | None) -> None:
    """Check that a side is named if each side of the folder has a vocabulary, and only then."""
    has_sides = (folder / OF_SIDES["source"]).is_file()
    if has_sides and side is None:
        raise UserError(
            f"data.vocab.huggingface.side: {folder} has a vocabulary for each side; set "
            "data.vocab.source and data.vocab.target, as `ds-seq import` writes them"
        )
    if side is not None and not has_sides:
        raise UserError(
            f"data.vocab.huggingface.side: {folder} has one vocabulary for both sides; remove side"
        )


def _plain() -> Normalizer:
    return Normalizer(nfkc=False, fold_spaces=False)


def _restored(
    stored: _Stored, normalizer: Normalizer, name: str, side: tuple[str, bool] | None
) -> HuggingFaceTokenizer:
    tokenizer = HuggingFaceTokenizer(stored, normalizer, name)
    return tokenizer if side is None else tokenizer.for_side(*side)


def _is_text(name: str) -> bool:
    return name.endswith((".json", ".txt"))


def _content(path: Path) -> str:
    content = read_limited(path, _MOST_BYTES)
    if _is_text(path.name):
        return content.decode("utf-8", errors="replace")
    return base64.b64encode(content).decode()
