"""gpu.py: beam search over batches of similar length.

Shapes: B sentences, S source length, N rows of hypotheses.
"""

from __future__ import annotations

import copy
import json
import statistics
from typing import Any

import torch
from plain import beam_search
from torch import Tensor

from ds_seq.data.batch import Padded
from ds_seq.models.build import build_seq2seq
from ds_seq.models.cache import DecoderCache
from ds_seq.models.output import EncoderOutput
from ds_seq.models.packing import pack_weights
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.search.beam_search import BeamSearch

from .bench import DTYPES, Bench
from .measure import Call, clear, count_waits, out_of_memory, peak_gb, profile, wall_ms
from .text import SYMBOLS
from .training import model_config

_BEAM = 5
_PUSH = 1.2  # added to the logit of the end symbol at each step beyond the mean length
_VARIANTS = {
    # label: precision, cuDNN's attention, TF32
    "bf16": ("bf16", False, False),
    "fp16": ("fp16", False, False),
    "fp32": ("fp32", False, False),
    "fp16 with cuDNN": ("fp16", True, False),
    "fp32 with TF32": ("fp32", False, True),
}


class Finishing:
    """An untrained model whose sentences have realistic lengths.

    Args:
        model: model to wrap.
        mean: mean number of tokens of a translation.
    """

    def __init__(self, model: Seq2SeqTransformer, mean: int) -> None:
        self._model, self._mean, self.steps = model, mean, 0

    def encode(self, source: Tensor, source_mask: Tensor) -> EncoderOutput:
        """See `Seq2SeqTransformer`."""
        self.steps = 0
        return self._model.encode(source, source_mask)

    def start_cache(self, encoded: EncoderOutput, beam: int, max_length: int) -> DecoderCache:
        """See `Seq2SeqTransformer`."""
        return self._model.start_cache(encoded, beam, max_length)

    def decode_step(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """See `Seq2SeqTransformer`; (N,) -> (N, V)."""
        logits = self._model.decode_step(tokens, cache)
        self.steps += 1
        logits[:, SYMBOLS.eos] += _PUSH * (self.steps - self._mean)
        return logits


def generate(bench: Bench) -> None:
    """Measure precisions and batch sizes until the time is up."""
    sizes, search = bench.sizes, beam_search(SYMBOLS, beam=_BEAM)
    base = (
        build_seq2seq(model_config(sizes), sizes.vocab, 1, 0, seed=1).requires_grad_(False).eval()
    )
    for label, (precision, cudnn, tf32) in _VARIANTS.items():
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        torch.backends.cuda.matmul.allow_tf32 = tf32
        model = copy.deepcopy(base).to(bench.device, DTYPES[precision])
        pack_weights(model)
        finishing = Finishing(model, sizes.mean_length)
        for count in sizes.searches:
            if bench.seconds_left < 12:
                bench.figures["cut"] = "out of time"
                return
            entry = _time_search(bench, search, finishing, count)
            bench.figures[f"{label}/{count}"] = entry
            print(label, count, json.dumps(entry), flush=True)
            if "too_slow" in entry:
                break
            if label == "bf16" and count == sizes.searches[1]:
                _look_closely(bench, search, finishing, count)
        del model, finishing
        clear()
    torch.backends.cuda.matmul.allow_tf32 = False


def _sources(bench: Bench, count: int) -> Padded:
    """Return sources (B, S) of random words, of about the mean length."""
    mean, generator = bench.sizes.mean_length, torch.Generator().manual_seed(5)
    lengths = torch.randint(mean - 4, mean + 1, (count,), generator=generator)
    source = torch.randint(4, bench.sizes.vocab, (count, mean), generator=generator)
    mask = torch.arange(mean) < lengths[:, None]
    source[torch.arange(count), lengths - 1] = SYMBOLS.eos
    return Padded(source.masked_fill(~mask, SYMBOLS.pad), mask).to(bench.device)


def _call(search: BeamSearch, model: Finishing, source: Padded) -> Call:
    return lambda: search.search(model, *source)


def _time_search(bench: Bench, search: BeamSearch, model: Finishing, count: int) -> dict[str, Any]:
    """Measure a batch of `count` sentences."""
    clear()
    source = _sources(bench, count)
    call = _call(search, model, source)
    try:
        first = wall_ms(call)
        if first > 15_000:
            return {"ms": round(first), "too_slow": True, "steps": model.steps}
        again = statistics.median(wall_ms(call) for _ in range(1 if bench.sizes.tiny else 3))
    except Exception as problem:
        if not out_of_memory(problem):
            raise
        clear()
        return {"out_of_memory": True}
    found = search.search(model, *source)
    tokens = sum(len(hypotheses[0].tokens) + 1 for hypotheses in found)
    return {
        "ms": round(again, 1),
        "first_ms": round(first, 1),
        "steps": model.steps,
        "ms_per_step": round(again / model.steps, 3),
        "sentences_per_s": round(1e3 * count / again, 1),
        "tokens_per_s": round(1e3 * tokens / again),
        "peak_gb": round(peak_gb(), 2),
    }


def _look_closely(bench: Bench, search: BeamSearch, model: Finishing, count: int) -> None:
    """Report waits, launches and kernels of one search."""
    call, figures = _call(search, model, _sources(bench, count)), bench.figures
    figures["waits_per_search"] = count_waits(call)
    figures["waits_per_step"] = round(sum(figures["waits_per_search"].values()) / model.steps, 2)
    figures["profile"] = profile(call)
    figures["launches_per_step"] = round(figures["profile"]["launches"] / model.steps, 1)
