"""The model card of an export: `README.md`, as the Hugging Face Hub reads it.

Everything in it is read from the run; what is not known is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.yaml_file import to_yaml
from ds_seq.names import CONFIG_FILE, LOSS, METRICS_FILE, TEXT_METRICS, ExportFormat
from ds_seq.runs.card import StoredRun
from ds_seq.runs.formats.ctranslate2.usage import example
from ds_seq.text.tokenizer import Tokenizers

CARD_FILE = "README.md"
_FILES = ("source", "target", "text", "tsv", "jsonl", "tmx", "xml", "folder")
_VALID = "valid"
_USE = """```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model = AutoModelForSeq2SeqLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
rows = model.generate(**tokenizer(["..."], return_tensors="pt"))
print(tokenizer.batch_decode(rows, skip_special_tokens=True))
```"""
_LIBRARIES = {"hf": "transformers", "ctranslate2": "ctranslate2"}


def model_card(
    run: Path,
    stored: StoredRun,
    form: ExportFormat,
    check: str,
    params: int,
    changes: Sequence[str] = (),
) -> str:
    """Return the card of an export.

    Args:
        run: run folder, or export, of the model.
        stored: the model.
        form: format of the export, `hf` or `ctranslate2`.
        check: how the export was compared with the run, a sentence.
        params: number of parameters.
        changes: how the export differs from the model, a line each; if it does, the scores of the
            model are not its scores, and are left out.
    """
    config = stored.require_experiment()
    scores = {} if changes else _scores(run, stored.source.name)
    languages = f"{config.data.source_lang} to {config.data.target_lang}"
    lines = [
        "---",
        to_yaml(_front_matter(config, scores, form)).rstrip(),
        "---",
        "",
        f"# {config.name}",
        "",
        f"Translates {languages}. Made with ds_seq, checkpoint `{stored.source.name}`.",
        *_section("Model", [*_model(config, params), *(f"- {change}" for change in changes)]),
        *_section("Data", _data(config)),
        *_section("Scores", _listed(scores)),
        *_section("Checks", [check]),
        *_section("Use", [_use(config, stored.tokenizers, form)]),
    ]
    return "\n".join(lines) + "\n"


def _use(config: ExperimentConfig, tokenizers: Tokenizers, form: ExportFormat) -> str:
    if form == "ctranslate2":
        return f"```python\n{example(tokenizers, config)}\n```"
    return _USE.replace("FOLDER", json.dumps(config.name))


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if lines else []


def _front_matter(
    config: ExperimentConfig, scores: dict[str, Any], form: ExportFormat
) -> dict[str, Any]:
    languages = [config.data.source_lang, config.data.target_lang]
    front: dict[str, Any] = {
        "language": list(dict.fromkeys(languages)),
        "library_name": _LIBRARIES[form],
        "pipeline_tag": "translation",
        "tags": ["ds_seq"],
    }
    measured = [
        {"type": name, "value": round(scores[name], 4)} for name in TEXT_METRICS if name in scores
    ]
    if measured:
        result = {
            "task": {"type": "translation", "name": f"Translation {' to '.join(languages)}"},
            "dataset": {"type": "text", "name": "validation text of the run"},
            "metrics": measured,
        }
        front["model-index"] = [{"name": config.name, "results": [result]}]
    return front


def _model(config: ExperimentConfig, params: int) -> list[str]:
    lines = [f"- {params:,} parameters; all settings are in the `{CONFIG_FILE}` of the run"]
    if config.train.init_from is not None:
        lines.append(
            f"- training started with the weights of `{Path(config.train.init_from).name}`"
        )
    section = config.data.vocab.source_side.huggingface
    if section is not None:
        lines.append(f"- vocabulary of `{Path(section.path).name}`")
    return lines


def _data(config: ExperimentConfig) -> list[str]:
    """Return the names of the training and validation texts, without their folders."""
    lines = []
    for split in ("train", _VALID):
        for key, text in config.data.entries(split):
            values = text.model_dump(mode="json")
            names = [Path(values[name]).name for name in _FILES if values.get(name)]
            lines.append(f"- `{key}`: {', '.join(f'`{name}`' for name in names)}")
    return lines


def _listed(scores: dict[str, Any]) -> list[str]:
    if not scores:
        return []
    text = f"On the validation text ({scores['sentences']:,.0f} lines), after update "
    lines = [f"{text}{scores['update']:,}:", ""]
    for name in (*TEXT_METRICS, LOSS):
        if name in scores:
            signature = scores.get(f"{name}_signature")
            lines.append(
                f"- {name} {scores[name]:.2f}" + (f" (`{signature}`)" if signature else "")
            )
    return lines


def _scores(run: Path, checkpoint: str) -> dict[str, Any]:
    """Return the last validation of a checkpoint; nothing if there was none."""
    update = checkpoint.rpartition("_")[2]
    found: dict[str, Any] = {}
    if update.isdecimal():
        for record in _records(run / METRICS_FILE):
            if record.get("kind") == _VALID and record.get("update") == int(update):
                found = record
    return found


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a line that a kill has cut
            if isinstance(record, dict):
                yield record
