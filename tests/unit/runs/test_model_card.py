"""The model card of an export says what is known of its run, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from ds_seq.models import build_model
from ds_seq.runs.export import export
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.unit.runs.made import experiment, write_run

SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"


def _card(folder: Path) -> tuple[dict[str, object], str]:
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_has_the_scores_of_the_exported_checkpoint(
    tmp_path: Path, vocab: SentencePieceTokenizer
) -> None:
    raw = {"train": {"source": "/secret/place/train.en", "target": "/secret/place/train.de"}}
    config = experiment({"max_positions": 32}, vocab={"size": len(vocab)}, raw=raw)
    model = build_model(config.model, len(vocab), 1, 0, seed=1)
    run = write_run(tmp_path / "run", config, vocab, {1: model, 2: model})
    records = [
        {"kind": "valid", "update": update, "sentences": 20.0, "loss": 3.0 - update,
         "bleu": 10.0 * update, "bleu_signature": SIGNATURE}
        for update in (1, 2)
    ]  # fmt: skip
    lines = [json.dumps(record) for record in records] + ['{"kind": "valid", "upd']
    (run / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    export(run, tmp_path / "best", "best", form="hf")
    export(run, tmp_path / "last", "last", form="ctranslate2")
    front, text = _card(tmp_path / "best")
    assert front["language"] == ["en", "de"] and front["library_name"] == "transformers"
    assert front["model-index"][0]["results"][0]["metrics"] == [{"type": "bleu", "value": 10.0}]
    assert f"- bleu 10.00 (`{SIGNATURE}`)" in text and "- loss 2.00" in text
    assert "`train.en`, `train.de`" in text and "secret" not in text
    assert "Read back by ds_seq" in text
    other, text = _card(tmp_path / "last")
    assert other["library_name"] == "ctranslate2"
    assert "- bleu 20.00" in text and "CTranslate2" in text.partition("## Checks")[2]


def test_a_run_without_scores_has_a_card_without_scores(
    tmp_path: Path, vocab: SentencePieceTokenizer
) -> None:
    config = experiment({"max_positions": 32}, vocab={"size": len(vocab)})
    model = build_model(config.model, len(vocab), 1, 0, seed=1)
    export(
        write_run(tmp_path / "run", config, vocab, {1: model}), tmp_path / "o", "best", form="hf"
    )
    front, text = _card(tmp_path / "o")
    assert "model-index" not in front
    assert "## Scores" not in text and "## Data" not in text
