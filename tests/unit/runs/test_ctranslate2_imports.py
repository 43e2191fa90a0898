"""Models of transformers, exported for CTranslate2, still do what transformers does.

What that is was recorded with the folders in tests/data/huggingface.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ctranslate2
import pytest
import torch

from ds_seq.errors import UserError
from ds_seq.runs.export import export, write_export
from ds_seq.runs.formats.ctranslate2.usage import example
from ds_seq.runs.formats.huggingface.importing import Languages, import_folder
from ds_seq.runs.formats.imported import Imported

FOLDERS = Path(__file__).parents[2] / "data" / "huggingface"
NLLB = Languages("en", "de", "eng_Latn", "deu_Latn")
SPARSE = ("nllb_moe", "switch")
DENSE = sorted(path.name for path in FOLDERS.iterdir() if path.name not in SPARSE)
_LIMIT = 39  # of 40 with the start symbol


def imported(name: str, folder: Path) -> Imported:
    """A recorded model, and a run of it in `folder / "run"`."""
    codes = NLLB if name.startswith("nllb") else Languages("en", "de")
    result = import_folder(FOLDERS / name, name, codes)
    write_export(result.model, result.config, result.tokenizers, folder / "run")
    return result


@pytest.mark.parametrize("name", DENSE)
def test_scores_and_translations_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    result = imported(name, tmp_path)
    export(tmp_path / "run", tmp_path / "out", "best", form="ctranslate2")
    expected: dict[str, Any] = json.loads((FOLDERS / name / "expected.json").read_text("utf-8"))
    source, target = result.tokenizers
    lines = expected["lines"]
    given = [source.pieces(source.symbols.framed(ids)) for ids in source.encode_lines(lines)]
    opening = list(target.symbols.opening)
    targets = [target.pieces([*opening, *ids]) for ids in target.encode_lines(lines)]
    translator = ctranslate2.Translator(str(tmp_path / "out"), intra_threads=1)
    for scored, scores in zip(
        translator.score_batch(given, targets), expected["scores"], strict=True
    ):
        torch.testing.assert_close(scored.log_probs, scores, atol=5e-5, rtol=1e-5)
    never = [[piece] for piece in target.pieces(sorted(target.symbols.never_generated))]
    prefix = [target.pieces(opening)] * len(lines) if opening else None
    for beam, answers in expected["answers"].items():
        found = translator.translate_batch(
            given, beam_size=int(beam), target_prefix=prefix, max_decoding_length=_LIMIT,
            suppress_sequences=never, return_end_token=True,
        )  # fmt: skip
        ends = [target.pieces([target.symbols.eos])[0] == each.hypotheses[0][-1] for each in found]
        texts = [target.join(each.hypotheses[0][len(opening) : -1]) for each in found]
        ended = [
            (text, answer) for text, answer, end in zip(texts, answers, ends, strict=True) if end
        ]
        assert len(ended) > len(lines) / 2
        assert [text for text, _ in ended] == [answer for _, answer in ended]


@pytest.mark.parametrize("name", SPARSE)
def test_experts_are_refused_by_name(name: str, tmp_path: Path) -> None:
    imported(name, tmp_path)
    with pytest.raises(UserError, match=r"^model\.moe: .* experts .*--merge-experts") as error:
        export(tmp_path / "run", tmp_path / "out", "best", form="ctranslate2")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_folder_has_the_files_of_its_tokenizer_and_an_example(tmp_path: Path) -> None:
    """By `model_type`, an `AutoTokenizer` finds the class that reads the files."""
    result = imported("nllb", tmp_path)
    export(tmp_path / "run", tmp_path / "out", "best", form="ctranslate2")
    content = (FOLDERS / "nllb" / "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == content
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "m2m_100"
    text = (tmp_path / "out" / "README.md").read_text()
    assert example(result.tokenizers, result.config) in text
    assert "target_prefix=[['deu_Latn']]" in text
