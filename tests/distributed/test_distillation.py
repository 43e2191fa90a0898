"""A queue that ranks share: every layout of the same batches distils the same tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ds_seq import distributed
from ds_seq.criterions.selection import QueueSelector
from ds_seq.data.batch import Batch
from tests.batches import batch_of
from tests.distributed.harness import run_distributed

PAD, UPDATES, FEW = 1, 6, 4
TAGS = (5, 6)
LENGTHS = ((3, 7), (5,), (), (2, 2, 1))  # of the sentences of each batch; one is empty

Picked = dict[tuple[int, int], list[int]]
"""By update and batch."""


def _batch(update: int, index: int) -> tuple[Tensor, Batch]:
    """Losses of a batch's tokens, and its sentences; the same on every rank."""
    generator = torch.Generator().manual_seed(10 * update + index)
    lengths = LENGTHS[(update + index) % len(LENGTHS)]
    rows = max(len(lengths), 1)
    target = torch.full((rows, 8), PAD)
    for row, length in enumerate(lengths):
        target[row, :length] = 3
    source = torch.randint(4, 7, (rows, 3), generator=generator)
    nll = torch.rand(sum(lengths), generator=generator)
    if update == 2 and len(nll):
        nll[0] = float("nan")
    return nll, batch_of(source, target)


def _run(tags: tuple[int, ...]) -> tuple[Picked, dict[str, Tensor]]:
    """Six updates of four batches each, whatever the number of ranks; one is not applied."""
    selector, picked = QueueSelector(0.4, 30, shared=True, tags=tags), {}
    for update in range(UPDATES):
        for index in range(distributed.rank(), FEW, distributed.world_size()):
            nll, batch = _batch(update, index)
            picked[update, index] = selector.select(nll, batch).tolist()
        selector.end_update(applied=update != 3)
    return picked, selector.state()


@pytest.mark.parametrize("world", [2, 4])
def test_every_layout_selects_the_same_tokens(world: int) -> None:
    by_rank = run_distributed(_run_both, world)
    for case, tags in enumerate(((), TAGS)):
        expected, state = _run(tags)
        tokens = sum(len(_batch(*key)[0]) for key in expected)
        assert 0.2 * tokens < sum(map(len, expected.values())) < 0.7 * tokens
        picked: Picked = {}
        for found in by_rank:
            picked.update(found[case][0])
        assert picked == expected
        torch.testing.assert_close(by_rank[0][case][1], state, rtol=0, atol=0)
        assert all(not found[case][1] for found in by_rank[1:])


def _run_both() -> list[tuple[Picked, dict[str, Tensor]]]:
    return [_run(()), _run(TAGS)]


def _gather() -> list[Tensor]:
    nothing = [torch.zeros(2, 0)] * 2  # an update of empty batches
    assert [piece.shape for piece in distributed.gather_pieces(nothing)] == [(2, 0)] * 4
    first, rank = 10 * distributed.rank(), distributed.rank()
    pieces = [torch.arange(first, first + rank), torch.zeros(0), torch.tensor([first + 9])]
    return distributed.gather_pieces([piece.int().expand(2, -1) for piece in pieces])


def test_pieces_come_in_the_order_of_the_data() -> None:
    for found in run_distributed(_gather, 2):
        assert [piece[0].tolist() for piece in found] == [[], [10], [], [], [9], [19]]
        assert all(piece.shape[0] == 2 and piece[0].equal(piece[1]) for piece in found)
