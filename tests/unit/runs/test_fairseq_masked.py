"""`ds-seq import fairseq` of RoBERTa."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ds_seq import cli
from ds_seq.runs.formats.fairseq.stitching import read_checkpoint
from ds_seq.runs.formats.imported import text_inputs_of
from ds_seq.runs.open import load_run, open_run
from tests.data.fairseq import MASKED_MODELS, write_recorded_checkpoints
from tests.unit.runs.fairseq_model import INNER, WIDTH, WORDS, Tensors, arguments, write

Capture = pytest.CaptureFixture[str]
ROWS, POSITIONS, MASK = WORDS + 5, 16, "<mask>"
DESCRIBED = ("encoder_", "dropout", "lr", "no_progress_bar")
OLD = {"arch": "roberta_base", "task": "masked_lm", "max_positions": POSITIONS, "mask_prob": 0.2}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that fairseq wrote, what it computed, and the dictionary that they are for."""
    return write_recorded_checkpoints(tmp_path_factory.mktemp("recorded"), ["masked"])


@pytest.mark.parametrize("name", MASKED_MODELS)
def test_a_model_computes_what_fairseq_computed(
    name: str, recorded: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["--dict", str(recorded / "spm" / "dict.en.txt"), "--out", str(tmp_path / "run")]
    words += ["--sentencepiece", str(recorded / "spm.model"), "--source-lang", "en"]
    assert cli.main(["import", "fairseq", str(recorded / f"{name}.pt"), *words]) == 0
    listed = re.findall(r"^(?:taken|renamed|joined|left) +(\S+)", capsys.readouterr().out, re.M)
    stored = read_checkpoint(recorded / f"{name}.pt")["model"]
    assert listed == list(stored)
    run = load_run(tmp_path / "run", "best", dtype=torch.float64)
    pairs = json.loads((recorded / "pairs.json").read_text(encoding="utf-8"))
    expected = torch.load(recorded / f"{name}.logits.pt")
    for (source, _), theirs in zip(pairs, expected, strict=True):
        with torch.no_grad():
            ours = run.model(text_inputs_of(source)).logits
        assert (ours - theirs).abs().max() < 1e-5  # recorded in float32
    tied = name == "roberta"
    assert run.model_config.share_embeddings == ("all" if tied else "none")
    assert run.card.source_lang == "en"


def of_old_file(prefix: str = "decoder.") -> dict[str, Tensor]:
    """Tensors as RoBERTa was published with: other names, queries, keys and values in one."""
    tensors = Tensors()
    tensors.add("encoder.embed_tokens.weight", ROWS, WIDTH)
    tensors.add("encoder.embed_positions.weight", POSITIONS + 2, WIDTH)
    tensors.norm("encoder.emb_layer_norm")
    tensors.layers("encoder", 2)
    tensors.linear("lm_head.dense", WIDTH, WIDTH)
    tensors.norm("lm_head.layer_norm")
    tensors.add("lm_head.bias", ROWS)
    state = tensors.state
    for number in range(2):
        place = f"encoder.layers.{number}.self_attn"
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{place}.{part}_proj.{kind}") for part in "qkv"]
            state[f"{place}.in_proj_{kind}"] = torch.cat(parts)
    state["lm_head.weight"] = state["encoder.embed_tokens.weight"]
    return {
        f"{prefix}{name.replace('encoder.', 'sentence_encoder.')}": v for name, v in state.items()
    }


def run_import(folder: Path, state: dict[str, Tensor], *more: str, **given: Any) -> int:
    known = vars(arguments(encoder_ffn_embed_dim=INNER, **OLD))
    chosen = {k: v for k, v in known.items() if k.startswith(DESCRIBED) or k in OLD}
    path = write(folder, state, arguments().__class__(**{**chosen, **given}))
    words = ["import", "fairseq", str(path), "--dict", str(folder / "dict.txt")]
    return cli.main([*words, "--out", str(folder / "run"), *more])


def test_published_files_leave_out_what_was_no_choice_then(tmp_path: Path, capsys: Capture) -> None:
    state = of_old_file()
    state |= {f"classification_heads.mnli.{n}": torch.ones(3, 3) for n in ("dense", "out_proj")}
    assert run_import(tmp_path, state) == 0
    left = re.findall(r"^left +(\S+) +\((.*)\)", capsys.readouterr().out, re.M)
    assert [why for name, why in left if "mnli" in name] == [
        "of a task with classes, which there is none of here"
    ] * 2
    run = open_run(tmp_path / "run", "best")
    config = run.require_experiment()
    assert config.task.predicted == 0.2 and config.task.block_tokens == POSITIONS
    assert config.model.activation == "gelu" and config.model.embedding_norm
    source = run.tokenizers.source
    framed = source.symbols.framed(source.encode("word1"))
    assert source.pieces(framed) == ["<s>", "word1", "</s>"]
    assert source.pieces([len(source) - 1]) == [MASK]


def more(state: dict[str, Tensor]) -> None:
    state["decoder.sentence_encoder.segment_embeddings.weight"] = torch.ones(2)


def less(state: dict[str, Tensor]) -> None:
    del state["decoder.lm_head.layer_norm.bias"]


def other(state: dict[str, Tensor]) -> None:
    state["decoder.lm_head.weight"] = state["decoder.lm_head.weight"] + 1


@pytest.mark.parametrize(
    ("change", "words", "given", "message"),
    [
        (more, (), {}, "has decoder.sentence_encoder.segment_embeddings.weight, which no model"),
        (less, (), {}, "lacks lm_head.layer_norm.bias, which its arguments describe"),
        (other, (), {}, "has decoder.lm_head.weight, which no model"),
        (None, ("--target-lang", "de"), {}, "a language model has one side; leave it out"),
        (None, (), {"arch": "roberta_enc_dec"}, "--arch roberta_enc_dec: only Transformers, BART"),
        (None, (), {"max_positions": 20}, r"\(16, 8\), but the arguments .* say \(20, 8\)"),
        (None, (), {"activation_fn": "tanh"}, "--activation-fn tanh: no such activation"),
    ],
)
def test_what_cannot_be_imported_is_named(
    change: Any,
    words: tuple[str, ...],
    given: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    state = of_old_file()
    if change is not None:
        change(state)
    assert run_import(tmp_path, state, *words, **given) == 2
    captured = capsys.readouterr().err
    assert re.search(message, captured) and "Traceback" not in captured
    assert not (tmp_path / "run").exists()
