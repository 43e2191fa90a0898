"""What holds for every language model, whatever its layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ds_seq.data.source import TokenBlock
from ds_seq.data.text_batch import TextInputs, text_batch
from ds_seq.text.tokenizer import Symbols

SYMBOLS = Symbols(pad=1, eos=2, unk=3, start=2)
EXACT = {"atol": 1e-5, "rtol": 1e-5}


def inputs_of(texts: list[list[int]]) -> TextInputs:
    """What a model reads of texts, which end with the end symbol."""
    return text_batch(TokenBlock.of(texts), SYMBOLS).inputs


@torch.no_grad()
def check_steps(model: Any, texts: list[list[int]], other: int, effect: float) -> Tensor:
    """Padding, mates, later tokens and steps change nothing.

    Args:
        model: the model, in evaluation mode.
        texts: three texts, of which the first has five tokens and the second three.
        other: token in place of the third one of the first text.
        effect: what it changes in later scores, at least.

    Returns:
        The scores of all tokens.
    """
    inputs = inputs_of(texts)
    logits: Tensor = model(inputs).logits
    cache = model.start_cache(model.encode(*inputs[:2]), 1, 8)
    steps = [model.decode_step(tokens, cache) for tokens in inputs.tokens.t()]
    torch.testing.assert_close(torch.stack(steps, 1)[inputs.target_mask], logits, **EXACT)
    torch.testing.assert_close(model(inputs_of(texts[1:2])).logits, logits[5:8], **EXACT)
    first = texts[0]
    changed = model(inputs_of([[*first[:2], other, *first[3:]]])).logits
    torch.testing.assert_close(changed[:3], logits[:3], **EXACT)
    assert (changed[3:] - logits[3:5]).abs().max() > effect
    return logits


@torch.no_grad()
def check_beam(model: Any, texts: list[list[int]], vocab_size: int) -> Any:
    """States follow hypotheses that are dropped and reordered; returns the cache."""
    prefixes = torch.randint(4, vocab_size, (6, 3))
    inputs = inputs_of(texts)
    cache = model.start_cache(model.encode(*inputs[:2]), 2, 9)
    for tokens in prefixes[:, :2].t():
        model.decode_step(tokens, cache)
    cache.keep_sentences(torch.tensor([2, 1]))  # rows 4 5 2 3
    cache.reorder(torch.tensor([1, 0, 2, 2]))
    third = torch.tensor([8, 9, 10, 11])
    found = model.decode_step(third, cache)
    paths = torch.cat([prefixes[[5, 4, 2, 2], :2], third[:, None]], 1)
    other = model.start_cache(model.encode(paths, paths > 0), 1, 9)
    want = [model.decode_step(tokens, other) for tokens in paths.t()][-1]
    torch.testing.assert_close(found, want, **EXACT)
    return cache
