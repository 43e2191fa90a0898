"""The cost of the token loss: memory and softmaxes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ds_seq.criterions import cross_entropy as module
from ds_seq.criterions.token_loss import Select, TokenTargets, token_loss
from ds_seq.data.batch import TopTokens
from ds_seq.names import Divergence
from tests.unit.criterions.made import distil, peak_bytes, softmax_elements, top_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("divergence", ["forward_kl", "js"])
def test_no_distribution_exists_whole(
    divergence: Divergence, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In addition to the logits, there is their gradient, and a few rows of everything else."""
    monkeypatch.setattr(module, "_CPU_ELEMENTS", 4000)
    rows, words = 400, 500
    logits, teacher = (torch.randn(rows, words).to(dtype) for _ in range(2))
    logits.requires_grad_()
    tokens = torch.randint(words, (rows,))
    few = 4000 * 4 * torch.get_num_threads()
    for select in (None, lambda nll: torch.arange(0, rows, 2)):

        def run(select: Select | None = select) -> None:
            targets = TokenTargets(tokens, teacher, select)
            how = distil(1.0, divergence, 2.0)
            token_loss(logits, targets, (0.9, 0.0002), 1.0, how).total.backward()
            logits.grad = None

        size = rows * words * logits.element_size()
        assert size <= peak_bytes(run) < size + 20 * few < size + rows * words * 2


def test_work_is_in_proportion_to_what_is_distilled() -> None:
    """Softmaxes dominate the cost: one for the student, one for the teacher, and no more."""
    rows, words, some = 60, 50, 10
    logits, teacher = torch.randn(rows, words, requires_grad=True), torch.randn(rows, words)
    tokens = torch.randint(words, (rows,))

    def elements(said: Tensor | TopTokens | None, selected: bool, temperature: float = 1.0) -> int:
        select = (lambda nll: torch.arange(some)) if selected else None
        targets, how = TokenTargets(tokens, said, select), distil(temperature=temperature)
        return softmax_elements(
            lambda: token_loss(logits, targets, (0.9, 0.002), 1.0, how).total.backward()
        )

    assert elements(None, False) == rows * words
    assert elements(teacher, False) == 2 * rows * words
    assert elements(teacher, False, 2.0) == 3 * rows * words
    assert elements(teacher, True) == (rows + 2 * some) * words
    assert elements(top_tokens(teacher, 4), False) == rows * (words + 4)
    assert elements(top_tokens(teacher, 4), True) == rows * words + some * (words + 4)
