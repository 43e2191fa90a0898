"""generation.py: how Hugging Face, JoeyNMT and eole translate, each in its own environment.

See `generation_sides.System`; a choice is the number of sentences per batch. JoeyNMT and eole get
fairseq's weights under their names, Hugging Face an exported folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from peer_models import (
    EOS,
    JOEYNMT_SYMBOLS,
    PAD,
    SYMBOLS,
    Sizes,
    by_length,
    eole_model,
    joeynmt_model,
    padded,
)

Hypothesis = tuple[list[int], float]
"""Ids without the end symbol, and a score."""

SIZES = [16, 32, 64]


class InBatches:
    """Part of a `System` that translates batches of similar length.

    Args:
        job: settings written by `generation.py`.
        model: the model, whose parameters are counted.
        package: package whose version is reported.
    """

    def __init__(self, job: dict[str, Any], model: Any, package: str) -> None:
        import torch

        torch.set_num_threads(job["threads"])
        self.num_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.versions = f"{package} {version(package)}, torch {torch.__version__}"
        self.choices = SIZES

    def translate(self, sources: list[list[int]], choice: int) -> list[Hypothesis]:
        """See `System`."""
        answer: list[Hypothesis] = [([], 0.0)] * len(sources)
        for batch in by_length(sources, choice):
            rows = [[*sources[i], EOS] for i in batch]
            for i, found in zip(batch, self.search(rows), strict=True):
                answer[i] = found
        return answer

    def search(self, rows: list[list[int]]) -> Iterator[Hypothesis]:
        """Yield the best translation of each source, which ends with the end symbol."""
        raise NotImplementedError


class HuggingFace(InBatches):
    """`generate` of transformers.

    Args:
        job: settings written by `generation.py`.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        from transformers import AutoModelForSeq2SeqLM

        self._model: Any = AutoModelForSeq2SeqLM.from_pretrained(job["huggingface"]).eval()
        settings = self._model.generation_config  # the export's; the limit is given in each call
        settings.forced_eos_token_id = settings.max_length = None
        self._most, self._beam = job["most"], job["beam"]
        super().__init__(job, self._model, "transformers")

    def search(self, rows: list[list[int]]) -> Iterator[Hypothesis]:
        """See `InBatches`."""
        ids = padded(rows)
        found = self._model.generate(
            input_ids=ids,
            attention_mask=(ids != PAD).long(),
            num_beams=self._beam,
            max_new_tokens=self._most + 1,
            do_sample=False,
            length_penalty=1.0,
            early_stopping=True,
            return_dict_in_generate=True,
            output_scores=True,
        )
        for row, score in zip(found.sequences[:, 1:], found.sequences_scores, strict=True):
            yield _to_end(row.tolist()), float(score)


class JoeyNMT(InBatches):
    """The beam search of JoeyNMT, with its own length penalty.

    Args:
        job: settings written by `generation.py`.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self._model = joeynmt_model(Sizes(*job["sizes"]), _weights(job)).eval()
        self._most, self._beam = job["most"], job["beam"]
        super().__init__(job, self._model, "joeynmt")

    def search(self, rows: list[list[int]]) -> Iterator[Hypothesis]:
        """See `InBatches`."""
        import torch
        from joeynmt.batch import Batch
        from joeynmt.search import search

        ids = padded([[_joeynmt_id(i) for i in row] for row in rows])
        batch = Batch(
            src=ids,
            src_length=torch.tensor([len(row) for row in rows]),
            src_prompt_mask=None,
            trg=None,
            trg_prompt_mask=None,
            indices=torch.arange(len(rows)),
            device=torch.device("cpu"),
            pad_index=JOEYNMT_SYMBOLS.index(PAD),
            eos_index=JOEYNMT_SYMBOLS.index(EOS),
            is_train=False,
        )
        found, scores, _ = search(
            self._model,
            batch,
            max_output_length=self._most + 1,
            beam_size=self._beam,
            beam_alpha=1.0,
            min_output_length=0,
            return_prob="hyp",
        )
        for row, score in zip(found.tolist(), scores, strict=True):
            symbols = len(JOEYNMT_SYMBOLS)
            yield _to_end([JOEYNMT_SYMBOLS[i] if i < symbols else i for i in row]), float(score[0])


class EoleSearch(InBatches):
    """The beam search of eole, with its default length penalty, which is ours.

    Args:
        job: settings written by `generation.py`.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        import logging

        from eole.config.run import PredictConfig
        from eole.predict import GNMTGlobalScorer
        from eole.predict.translator import Translator

        made = eole_model(Sizes(*job["sizes"]), {}, _weights(job))
        made.model.eval()
        made.model.update_dropout(0.0, 0.0)
        config = PredictConfig(
            model_path="unused",
            src="unused",
            beam_size=job["beam"],
            max_length=job["most"] + 1,
            max_length_ratio=0,
            length_penalty="avg",
        )
        self._translator: Any = Translator(
            made.model,
            made.vocabularies,
            config,
            made.config.model,
            device_id=-1,
            global_scorer=GNMTGlobalScorer.from_config(config),
            report_score=False,
            logger=logging.getLogger("eole"),
        )
        super().__init__(job, made.model, "eole")

    def search(self, rows: list[list[int]]) -> Iterator[Hypothesis]:
        """See `InBatches`."""
        import torch

        batch = {
            "src": padded(rows),
            "srclen": torch.tensor([len(row) for row in rows]),
            "ind_in_bucket": list(range(len(rows))),
        }
        found = self._translator.predict_batch(batch, attn_debug=False)
        for ids, scores in zip(found["predictions"], found["scores"], strict=True):
            yield _to_end(ids[0].tolist()), float(scores[0])


def _weights(job: dict[str, Any]) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(job["fairseq"]["weights"])


def _joeynmt_id(ours: int) -> int:
    return JOEYNMT_SYMBOLS.index(ours) if ours < len(SYMBOLS) else ours


def _to_end(ids: Sequence[int]) -> list[int]:
    ids = list(ids)
    return ids[: ids.index(EOS)] if EOS in ids else ids
