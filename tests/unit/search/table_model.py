"""A model small enough to search exhaustively: the next token's scores come from a random table.

The row of the table depends on the whole source and on every token decoded so far, so that a
mistake in re-ordering, in dropping sentences or with padding changes the answer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ds_seq.text.normalize import Normalizer
from ds_seq.text.tokenizer import Symbols, Tokenizers

BOS, PAD, EOS, UNK = range(4)
SYMBOLS = Symbols(pad=PAD, eos=EOS, unk=UNK, start=EOS, bos=BOS)
_ROWS = 499


@dataclass
class TableCache:
    """The table row of every hypothesis, and what its sentence adds to it."""

    sources: Tensor  # (B,)
    rows: Tensor  # (N,)
    beam: int
    max_length: int
    length: int = 0

    def reorder(self, rows: Tensor) -> None:
        assert torch.equal(rows // self.beam, torch.arange(len(rows)) // self.beam), (
            "left its sentence"
        )
        self.rows = self.rows[rows]

    def keep_sentences(self, kept: Tensor) -> None:
        self.sources = self.sources[kept]
        self.rows = self.rows.view(-1, self.beam)[kept].flatten()


class TableModel:
    """Implements what `BeamSearch` needs of a model.

    Args:
        vocab_size: V.
        seed: of the table.
        end_bias: added to the end symbol's logits; higher makes shorter translations.
    """

    def __init__(self, vocab_size: int, seed: int = 0, end_bias: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = 2 * torch.randn(_ROWS, vocab_size, generator=generator)
        self.table[:, EOS] += end_bias
        self.steps = 0
        self.training = False

    def encode(self, source: Tensor, source_mask: Tensor) -> Tensor:
        places = torch.arange(source.size(1)) + 3
        return (source_mask * (source + 1) * places * places).sum(1) % _ROWS

    def start_cache(self, encoded: Tensor, beam: int, max_length: int) -> TableCache:
        rows = torch.zeros(len(encoded) * beam, dtype=torch.int64)
        return TableCache(encoded, rows, beam, max_length)

    def decode_step(self, tokens: Tensor, cache: TableCache) -> Tensor:
        assert len(tokens) == len(cache.sources) * cache.beam
        assert cache.length < cache.max_length
        sources = cache.sources.repeat_interleave(cache.beam)
        cache.rows = (cache.rows * 31 + tokens * 7 + sources + 1) % _ROWS
        cache.length += 1
        self.steps += 1
        return self.table[cache.rows]

    # what nn.Module has, for `Task.evaluate`
    def eval(self) -> TableModel:
        return self.train(False)

    def train(self, mode: bool = True) -> TableModel:
        self.training = mode
        return self

    def next_log_probs(self, source: list[int], prefix: list[int]) -> list[float]:
        """The same in plain Python: log-probabilities after a prefix."""
        key = sum((token + 1) * (place + 3) ** 2 for place, token in enumerate(source)) % _ROWS
        row = 0
        for token in [EOS, *prefix]:
            row = (row * 31 + token * 7 + key + 1) % _ROWS
        return self.table[row].log_softmax(-1).tolist()

    def forced(self, source: list[int], tokens: list[int]) -> list[float]:
        """Log-probability of each token of a hypothesis and of its end."""
        with_end = [*tokens, EOS]
        return [
            self.next_log_probs(source, with_end[:n])[token] for n, token in enumerate(with_end)
        ]


def normalized(token_scores: list[float], length_penalty: float) -> float:
    return sum(token_scores) / len(token_scores) ** length_penalty


def all_hypotheses(
    model: TableModel, source: list[int], min_len: int, limit: int, length_penalty: float
) -> Iterator[tuple[float, list[int]]]:
    """Score and tokens of everything that may be generated."""
    words = [token for token in range(model.table.size(1)) if token not in (BOS, PAD, EOS)]
    for length in range(min_len, limit + 1):
        for tokens in itertools.product(words, repeat=length):
            scores = model.forced(source, list(tokens))
            yield normalized(scores, length_penalty), list(tokens)


def slow_beam_search(
    model: TableModel, source: list[int], beam: int, limit: int, length_penalty: float
) -> list[tuple[float, list[int]]]:
    """Beam search as its definition reads, one sentence and one hypothesis at a time; min_len 1."""
    opened: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    for step in itertools.count():
        candidates = []
        for total, tokens in opened:
            for token, log_prob in enumerate(model.next_log_probs(source, tokens)):
                allowed = token == EOS if step == limit else token not in (BOS, PAD)
                if allowed and (token != EOS or step > 0):
                    candidates.append((total + log_prob, [*tokens, token]))
        candidates = sorted(candidates, reverse=True)[: 2 * beam]
        for total, tokens in candidates[:beam]:
            if tokens[-1] == EOS and len(finished) < beam:
                finished.append((total / len(tokens) ** length_penalty, tokens[:-1]))
        opened = [c for c in candidates if c[1][-1] != EOS][:beam]
        if len(finished) == beam or not opened:
            return sorted(finished, reverse=True)
    raise AssertionError(math.inf)


class WordTokenizer:
    """A tokenizer of the words w3, w4, ...; another word is `<unk>`, as is its id."""

    symbols = Symbols(pad=PAD, eos=EOS, unk=UNK, start=EOS, bos=BOS)
    fingerprint = "of words"
    tag_ids: frozenset[int] = frozenset()

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def normalize(self, text: str) -> str:
        return Normalizer(nfkc=False, fold_spaces=False)(text)

    def encode(self, text: str) -> list[int]:
        return self.encode_lines([text])[0]

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        known = {f"w{i}": i for i in range(4, self.size)}
        return [[known.get(word, UNK) for word in self.normalize(x).split()] for x in lines]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return ["<unk>" if i == UNK else f"w{i}" for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"w{i}" for i in ids)

    def split_lines(self, lines: Sequence[str]) -> list[list[str]]:
        return [line.split() for line in lines]

    def join(self, pieces: Sequence[str]) -> str:
        return " ".join(pieces)

    def to_bytes(self) -> bytes:
        return str(self.size).encode()


def words(size: int) -> Tokenizers:
    """A `WordTokenizer` for both sides."""
    return Tokenizers.shared(WordTokenizer(size))
