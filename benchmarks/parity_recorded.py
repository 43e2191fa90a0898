"""fairseq_parity.py: fairseq's results for a tiny model, recorded for the unit tests.

The tests compare our search with them without fairseq. The file holds only ids and numbers: the
weights of the model, random sources, and for each setting all hypotheses of fairseq's beam with
their scores.

Shapes: B sentences, S source length, K beam width, T target length.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from parity_sides import EOS, Answer, Fairseq, Setting, Subject
from safetensors.torch import save_file
from torch import Tensor

from ds_seq.config.model import TransformerConfig
from ds_seq.models.build import build_seq2seq

FILE = Path(__file__).resolve().parent.parent / "tests" / "data" / "fairseq_search.safetensors"

VOCAB, PAD, FIRST_WORD = 48, 1, 4
SENTENCES, LONGEST = 32, 7
MAX_LEN_B = 2
_SIZES = {
    "d_model": 8,
    "ffn_dim": 16,
    "num_heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "norm_position": "pre",
    "max_positions": 64,
}
_SEED = 2
_GAIN = 1.6  # an untrained model gives nearly the same output everywhere


def tiny() -> Subject:
    """Return an untrained model whose outputs differ between sentences."""
    config = TransformerConfig.model_validate(_SIZES)
    model = build_seq2seq(config, VOCAB, 1, 0, seed=_SEED).requires_grad_(False).eval()
    for parameter in model.parameters():
        parameter.mul_(_GAIN)
    return Subject(model, config, VOCAB, MAX_LEN_B)


def draw_sources() -> list[list[int]]:
    """Return sources of 1 to 7 words, each with the end symbol."""
    draw = random.Random(_SEED)
    return [
        [draw.randrange(FIRST_WORD, VOCAB) for _ in range(draw.randint(1, LONGEST))] + [EOS]
        for _ in range(SENTENCES)
    ]


def write_recorded(python: Path, settings: Sequence[Setting], threads: int) -> str:
    """Run fairseq and write the file; return a line that reports it."""
    subject, sources = tiny(), draw_sources()
    fairseq = Fairseq(python, subject, threads)
    answers = fairseq.search(sources, settings)
    tensors = {f"model.{name}": p.contiguous() for name, p in subject.model.named_parameters()}
    tensors["sources"] = _pad(sources)  # (B, S)
    for setting, answer in zip(settings, answers, strict=True):
        key = f"{setting.beam}.{setting.length_penalty}"
        tensors[f"tokens.{key}"], tensors[f"scores.{key}"] = _as_tensors(answer, setting.beam)
    notes = {
        "config": json.dumps(_SIZES),
        "vocab_size": str(VOCAB),
        "max_len_b": str(MAX_LEN_B),
        "made_by": fairseq.versions,
    }
    save_file(tensors, FILE, notes)
    return f"{FILE.name}: {len(sources)} sentences, {len(settings)} settings, {fairseq.versions}"


def _pad(rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, rows))
    padded = [[*row, *[PAD] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.uint8)


def _as_tensors(answer: Answer, beam: int) -> tuple[Tensor, Tensor]:
    """Return tokens (B, K, T) with the end symbol, and scores (B, K)."""
    tokens = _pad([[*found.tokens, EOS] for found_all in answer for found in found_all])
    scores = torch.tensor([[found.score for found in found_all] for found_all in answer])
    return tokens.view(len(answer), beam, -1), scores
