"""What an export keeps of the folder from which its model was imported: settings and vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.runs.formats.huggingface.importing import Languages
from ds_seq.runs.formats.huggingface.mapping import Orders
from ds_seq.text.huggingface import HuggingFaceTokenizer
from ds_seq.text.tokenizer import Tokenizers

_SETTINGS = "tokenizer_config.json"
_NOT_KEPT = frozenset(
    "num_hidden_layers torch_dtype dtype _name_or_path transformers_version "
    "quantization_config vocab_size".split()
)
"""Settings that the export has anew, or that say something else than its own."""


class Origin:
    """The folder of the vocabularies of a run, if they were made for transformers.

    Args:
        tokenizers: both sides.

    Attributes:
        orders: row of theirs for each of our ids.
        settings: content of the folder's `config.json`, without what an export has anew; empty if
            the vocabularies are of another kind.
    """

    def __init__(self, tokenizers: Tokenizers) -> None:
        self._tokenizers = [t for t in tokenizers if isinstance(t, HuggingFaceTokenizer)]
        if not self._tokenizers:
            self.settings: dict[str, Any] = {}
            self.orders = Orders(*(range(len(side)) for side in tokenizers))
            return
        found = self._tokenizers[0].settings
        self.settings = {key: value for key, value in found.items() if key not in _NOT_KEPT}
        self.orders = Orders(*(side.permutation() for side in self._tokenizers))

    @property
    def kind(self) -> str | None:
        """Its `model_type`; None if there is no such folder."""
        return self.settings.get("model_type")

    def symbol_ids(self) -> dict[str, Any]:
        """Return the ids of symbols as `config.json` names them, the first of a target included.

        A model of many languages thus starts with its target language in any program that reads
        the settings of generation.
        """
        symbols, order = self._tokenizers[-1].symbols, self.orders.target
        ids = {"pad": symbols.pad, "eos": symbols.eos, "bos": symbols.bos}
        found = {f"{name}_token_id": order[i] for name, i in ids.items() if i is not None}
        found["decoder_start_token_id"] = order[symbols.start]
        if symbols.opening:
            found["forced_bos_token_id"] = order[symbols.opening[0]]
        return found

    def save_vocabulary(self, folder: Path, languages: Languages) -> None:
        """Write the files of the vocabulary as they were read, for these languages."""
        contents = {name: c for side in self._tokenizers for name, c in side.folder_files.items()}
        settings = json.loads(contents.pop(_SETTINGS, b"{}"))
        settings |= {"source_lang": languages.source, "target_lang": languages.target}
        codes = {"src_lang": languages.source_code, "tgt_lang": languages.target_code}
        settings |= {key: code for key, code in codes.items() if code is not None}
        contents[_SETTINGS] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
        contents.pop("config.json", None)
        for name, content in contents.items():
            (folder / name).write_bytes(content)


def languages_of(config: ExperimentConfig) -> Languages:
    """Return the languages of a run, with the model's symbols for them if they are set."""
    data = config.data
    section = data.vocab.source_side.huggingface
    if section is None:
        return Languages(data.source_lang, data.target_lang)
    codes = (section.source_code, section.target_code)
    return Languages(data.source_lang, data.target_lang, *codes, section.source_prefix)
