"""The aligner: what it chooses, for whom, and how that is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ds_seq.config.model import TransformerConfig
from ds_seq.errors import UserError
from ds_seq.generation.alignment import Aligner
from ds_seq.generation.forced import ForcedPair, attention_maps
from ds_seq.generation.output import LineWriter
from ds_seq.generation.translate import BatchLimits, LineResult
from ds_seq.models.build import build_seq2seq
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab
from tests.values import batch_limits

CPU = torch.device("cpu")
HOUSES = "wir sehen das alte Haus und den Hund im Wald und das neue Haus"
LINES = ["<2de> I see", "a \u2665 in (\u263a), now", "", "I hear 7 dogs"]


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    folder = tmp_path_factory.mktemp("words")
    write_toy(folder, 200, 10)
    sides = [folder / "train.en", folder / "train.de"]
    return train_vocab(sides, Path(folder / "m"), 130, user_symbols=["<2de>"])


def aligner(
    vocab: SentencePieceTokenizer, layer: int | None = None, limits: BatchLimits | None = None
) -> Aligner:
    config = TransformerConfig(
        d_model=16, ffn_dim=24, num_heads=2, encoder_layers=1, decoder_layers=2
    )
    model = build_seq2seq(config, len(vocab), 1, 0, seed=6).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return Aligner([model], Tokenizers.shared(vocab), limits or batch_limits(), CPU, layer)


def found(vocab: SentencePieceTokenizer) -> list[LineResult]:
    """Two hypotheses of each line; one has nothing but its end, another unknown pieces."""
    batch = []
    for line, ids in enumerate(vocab.encode_lines(LINES)):
        texts = ["die H\u00e4user \u2665 alt", ""] if line % 2 else [HOUSES, "\u263a"]
        hypotheses = [Hypothesis(vocab.encode(text), -float(n), []) for n, text in enumerate(texts)]
        if ids:
            batch.append(LineResult(line, [*ids, vocab.symbols.eos], hypotheses, line == 3))
        else:
            batch.append(LineResult(line, [], [Hypothesis([], 0.0, [])], False))
    return batch


@pytest.mark.parametrize("layer", [None, 0, 1])
def test_a_token_looks_at_the_heaviest_piece_that_is_neither_tag_nor_end(
    vocab: SentencePieceTokenizer, layer: int | None
) -> None:
    align = aligner(vocab, layer)
    batch = align(found(vocab))
    overruled = {"tag": 0, "end": 0}
    for one in batch:
        for hypothesis in one.hypotheses:
            assert hypothesis.alignment is not None
            if not hypothesis.tokens:
                assert hypothesis.alignment == []
                continue
            pairs = [ForcedPair(one.source, hypothesis.tokens)]
            (seen,) = attention_maps(align.models[0], align.tokenizers.symbols, pairs, CPU, layer)
            for row, place in zip(seen, hypothesis.alignment, strict=True):
                ranked = row.argsort(descending=True).tolist()
                end, tag = len(one.source) - 1, 0 if one.line == 0 else -1
                overruled["end"] += ranked[0] == end
                overruled["tag"] += ranked[0] == tag
                assert place == next(i for i in ranked if i not in (end, tag))
    assert overruled["tag"] > 0 and overruled["end"] > 0


def test_nothing_else_changes_and_batches_do_not_matter(vocab: SentencePieceTokenizer) -> None:
    batch = found(vocab)
    whole = aligner(vocab)(batch)
    alone = aligner(vocab, limits=batch_limits(max_sentences=1))
    parts = [one for single in batch for one in alone([single])]
    assert whole == parts
    for before, after in zip(batch, whole, strict=True):
        assert (before.line, before.source, before.cut) == (after.line, after.source, after.cut)
        for old, new in zip(before.hypotheses, after.hypotheses, strict=True):
            assert (old.tokens, old.score, old.token_scores, None) == (
                new.tokens,
                new.score,
                new.token_scores,
                old.alignment,
            )


def test_a_layer_that_is_not_there_is_refused(vocab: SentencePieceTokenizer) -> None:
    for layer in (None, 0, 1):
        aligner(vocab, layer).check()
    with pytest.raises(UserError, match="--align-layer 3: the decoder has fewer layers"):
        aligner(vocab, 2).check()


def test_alignments_in_all_formats(vocab: SentencePieceTokenizer) -> None:
    source = "We see \u263aa now"
    (spelt,) = vocab.split_lines([source])
    tokens = vocab.encode("wir \u2665 alt")
    places = [0] * len(tokens)  # wir -> We
    unknown = tokens.index(vocab.symbols.unk)
    places[unknown] = spelt.index("\u263a")
    places[unknown + 1 :] = [len(spelt) - 1] * (len(tokens) - unknown - 1)  # alt -> now
    hypothesis = Hypothesis(tokens, -1.0, [-1.0] * (len(tokens) + 1), places)
    for replace_unk, text in ((False, "wir \u2047 alt"), (True, "wir \u263a alt")):
        options = {"align": True, "replace_unk": replace_unk}
        row = LineWriter("tsv", Tokenizers.shared(vocab), [source], **options)(0, [hypothesis])
        _, _, written, pairs = row.split("\t")
        assert written.split() == text.split()
        assert pairs == "0-0 2-1 3-2"
        (answer,) = json.loads(
            LineWriter("jsonl", Tokenizers.shared(vocab), [source], **options)(0, [hypothesis])
        )["hypotheses"]
        assert (answer["text"], answer["alignment"]) == (written, pairs)
        rows = dict(
            row.split("\t", 1)
            for row in LineWriter("fairseq", Tokenizers.shared(vocab), [source], **options)(
                0, [hypothesis]
            ).split("\n")
        )
        assert rows["D-0"].split("\t")[1] == written
        # pieces, as in the lines S and H, which stay what the model has read and found
        assert rows["A-0"] == " ".join(f"{seen}-{n}" for n, seen in enumerate(places))
        assert rows["H-0"].split("\t")[1].split()[unknown] == "<unk>"
    assert "alignment" not in LineWriter("jsonl", Tokenizers.shared(vocab), [source])(
        0, [hypothesis]
    )


def test_words_are_those_of_the_text_that_is_written(vocab: SentencePieceTokenizer) -> None:
    """What is unknown stands alone, and what takes its place is part of a word."""
    source = "We see \u263aa now"
    (spelt,) = vocab.split_lines([source])
    tokens = vocab.encode("wir\u2665alt")
    hypothesis = Hypothesis(tokens, -1.0, [], [spelt.index("\u263a")] * len(tokens))
    for replace_unk, text, pairs in (
        (False, "wir \u2047 alt", [(2, 0), (2, 1), (2, 2)]),
        (True, "wir\u263aalt", [(2, 0)]),
    ):
        writer = LineWriter(
            "text", Tokenizers.shared(vocab), [source], align=True, replace_unk=replace_unk
        )
        assert writer.text(0, hypothesis) == text
        assert writer.words(0, hypothesis) == pairs
