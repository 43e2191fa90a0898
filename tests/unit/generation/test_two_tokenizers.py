"""Source and target with tokenizers of their own: each side is read and written with its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ds_seq.config.model import TransformerConfig
from ds_seq.generation.alignment import Aligner
from ds_seq.generation.forced import ForcedPair, score_pairs
from ds_seq.generation.output import LineWriter
from ds_seq.generation.pipeline import Translator
from ds_seq.generation.translate import search_plan, translate
from ds_seq.generation.words import replace_unknown
from ds_seq.models.build import build_seq2seq
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.search.sampling import Sampling
from ds_seq.text.tokenizer import Symbols, Tokenizers
from tests.batches import padded
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab
from tests.unit.search.table_model import EOS, PAD, SYMBOLS, UNK, TableModel
from tests.values import batch_limits, beam_search, draws

CPU = torch.device("cpu")
LINES = ["the man sees a house", "my sister reads", "", "a child"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Tokenizers:
    """Two SentencePiece models, one of each language, of unequal size."""
    folder = tmp_path_factory.mktemp("vocab")
    write_toy(folder, 300, 20)
    return Tokenizers(
        train_vocab([folder / "train.en"], Path(folder / "source"), 90),
        train_vocab([folder / "train.de"], Path(folder / "target"), 130, "bpe"),
    )


@pytest.fixture(scope="module")
def model(pair: Tokenizers) -> Seq2SeqTransformer:
    config = TransformerConfig(
        d_model=16, ffn_dim=24, num_heads=2, encoder_layers=1, decoder_layers=1, max_positions=64
    )
    return build_seq2seq(config, pair.size, 1, 0, seed=3).requires_grad_(False).eval()


def search(pair: Tokenizers, num_best: int = 1) -> BeamSearch:
    return beam_search(pair.symbols, beam=3, num_best=num_best, max_len_a=0, max_len_b=8)


def test_lines_are_encoded_with_one_and_decoded_with_the_other(
    pair: Tokenizers, model: Seq2SeqTransformer
) -> None:
    found = translate(model, pair, LINES, search(pair), batch_limits(), CPU)
    assert found is not None
    for line, text in zip(LINES, found.lines, strict=True):
        if not line:
            assert text == ""
            continue
        src = torch.tensor([[*pair.source.encode(line), pair.source.symbols.eos]])
        ((best,),) = search(pair).search(model, *padded(src))
        assert text == pair.target.decode(best.tokens)
        assert text != pair.source.decode([i for i in best.tokens if i < len(pair.source)])


def test_every_format_spells_each_side_with_its_own(
    pair: Tokenizers, model: Seq2SeqTransformer
) -> None:
    reference = ["der Mann sieht ein Haus", "meine Schwester liest", "", "ein Kind"]
    for form in ("jsonl", "fairseq", "tsv"):
        translator = Translator(
            model,
            pair,
            search(pair, 2),
            batch_limits(),
            "truncate",
            form,  # type: ignore[arg-type]
            CPU,
            steps=(Aligner([model], pair, batch_limits(), CPU),),
            align=True,
        )
        reading = translator.read(LINES)
        batches = list(translator.translate(reading, reference))
        found = sorted(line for batch in batches for line in batch)
        expected = {
            one.line: one.hypotheses
            for batch in search_plan(model, reading.plan, translator.search, CPU)
            for one in batch
        }
        best = expected[0][0]
        text, pieces = pair.target.decode(best.tokens), " ".join(pair.target.pieces(best.tokens))
        assert found[0].best == text
        if form == "jsonl":
            answer = json.loads(found[0].output)
            assert (answer["source"], answer["hypotheses"][0]["text"]) == (LINES[0], text)
        if form == "fairseq":
            rows = found[0].output.split("\n")
            source, target = pair.source.encode(LINES[0]), pair.target.encode(reference[0])
            assert rows[0] == f"S-0\t{' '.join(pair.source.pieces(source))}"
            assert rows[1] == f"T-0\t{' '.join(pair.target.pieces(target))}"
            assert rows[2].split("\t")[2] == pieces


def test_an_unknown_piece_gives_way_to_the_source_as_the_source_spells_it(
    pair: Tokenizers,
) -> None:
    line = "the \u263a man"
    ids = pair.source.encode(line)
    known = pair.target.encode("Mann")
    place = ids.index(pair.source.symbols.unk)
    tokens = [*known, pair.target.symbols.unk]
    pieces = replace_unknown(pair, tokens, [0] * len(known) + [place], line)
    assert pair.target.join(pieces) == "Mann\u263a"
    writer = LineWriter("text", pair, [line], replace_unk=True)
    alignment = [0] * len(known) + [place]
    hypothesis = Hypothesis(tokens, 0.0, [0.0] * len(tokens), alignment=alignment)
    assert writer(0, [hypothesis]) == "Mann\u263a"


class Started(TableModel):
    """Remembers the first tokens that it was fed."""

    first: list[int] | None = None

    def decode_step(self, tokens: torch.Tensor, cache: object) -> torch.Tensor:
        if self.first is None:
            self.first = tokens.tolist()
        return super().decode_step(tokens, cache)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", [None, draws(seed=1)])
def test_a_decoder_begins_with_the_start_symbol_and_never_says_it(
    sampling: Sampling | None,
) -> None:
    start = 6
    symbols = Symbols(pad=PAD, eos=EOS, unk=UNK, start=start)
    model = Started(9)
    options = {"beam": 4, "num_best": 4, "max_len_a": 0, "max_len_b": 12, "sampling": sampling}
    (found,) = beam_search(symbols, **options).search(  # type: ignore[arg-type]
        model, *padded(torch.tensor([[5, 4, EOS]]))
    )
    assert model.first == [start] * 4
    assert all(start not in hypothesis.tokens for hypothesis in found)
    again = beam_search(SYMBOLS, **options)  # type: ignore[arg-type]
    (others,) = again.search(TableModel(9), *padded(torch.tensor([[5, 4, EOS]])))
    assert [one.tokens for one in others] != [one.tokens for one in found]


def test_forced_scores_begin_with_the_start_symbol_too(model: Seq2SeqTransformer) -> None:
    symbols = Symbols(pad=PAD, eos=EOS, unk=UNK, start=6)
    wide = beam_search(symbols, beam=3, num_best=3, max_len_a=0, max_len_b=6)
    (found,) = wide.search(model, *padded(torch.tensor([[5, 4, EOS]])))
    pairs = [ForcedPair([5, 4, EOS], hypothesis.tokens) for hypothesis in found]
    for hypothesis, forced in zip(found, score_pairs(model, wide, pairs, CPU), strict=True):
        assert forced.score == pytest.approx(hypothesis.score, abs=1e-5)
