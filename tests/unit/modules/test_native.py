"""The kernels in C compute what PyTorch's operators compute, sentence by sentence."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch

from ds_seq.modules import native, native_sources
from ds_seq.modules.attention import attend
from ds_seq.modules.kv_cache import KeyValue
from ds_seq.search.top_k import top_continuations
from tests.native_kernels import FOLDER
from tests.native_kernels import kernels as kernels_in


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Return the kernels, compiled as setup.py compiles them."""
    return kernels_in(tmp_path_factory.mktemp("native"))


@pytest.fixture(params=["native", "torch"])
def kernels(request, monkeypatch):
    """Use the kernels, or PyTorch's operators."""
    library = request.getfixturevalue("compiled") if request.param == "native" else None
    monkeypatch.setattr(native, "library", lambda: library)
    return library


@pytest.fixture
def library(compiled, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: compiled)


def paths(num_sentences: int, num_queries: int, num_keys: int) -> torch.Tensor:
    """Return a mask that leaves every query some keys, the last one among them."""
    generator = torch.Generator().manual_seed(1)
    shape = num_sentences, 1, num_queries, num_keys
    hidden = torch.rand(shape, generator=generator) < 0.6
    hidden[..., -1] = False
    return torch.zeros(shape).masked_fill_(hidden, -math.inf)


CASES = [(3, 2, 2, 5, 21, 64), (2, 4, 2, 3, 7, 16), (1, 2, 1, 1, 40, 48), (4, 1, 1, 11, 1, 144)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("queries_of_mask", [None, 1, "all"])
def test_attention_is_that_of_float64(library, case, queries_of_mask):
    num_sentences, heads, shared, num_queries, num_keys, width = case
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(num_sentences, num_queries, heads, width + 3, generator=generator)
    query = rows.transpose(1, 2)[..., :width]
    buffer = torch.randn(2, num_sentences, shared, num_keys + 5, width, generator=generator)
    key, value = buffer[:, :, :, :num_keys]
    mask = None
    if queries_of_mask is not None:
        count = num_queries if queries_of_mask == "all" else 1
        mask = paths(num_sentences, count, num_keys)
    with torch.no_grad():
        found = native.attend(query, key, value, mask)
        memory = KeyValue(key.double(), value.double())
        exact = None if mask is None else mask.double()
        expected = attend(query.double(), memory, exact, dropout=0.0)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_masked_key_is_not_read(library):
    query, key = torch.randn(2, 2, 3, 16), torch.randn(2, 2, 9, 16)
    mask = paths(2, 3, 9)
    mask[:, :, :, 4] = -math.inf
    with torch.no_grad():
        before = native.attend(query, key, key, mask)
        key[:, :, 4] = math.nan
        assert torch.equal(native.attend(query, key, key, mask), before)


def test_a_sentence_does_not_depend_on_its_batch(library):
    query, key, mask = torch.randn(4, 2, 3, 32), torch.randn(4, 2, 9, 32), paths(4, 3, 9)
    with torch.no_grad():
        whole = native.attend(query, key, key, mask)
        alone = [
            native.attend(query[i : i + 1], key[i : i + 1], key[i : i + 1], mask[i : i + 1])
            for i in range(4)
        ]
    assert torch.equal(whole, torch.cat(alone))


@pytest.mark.parametrize(
    ("change", "grad"),
    [
        ({}, True),
        ({"width": 24}, False),
        ({"dtype": torch.float64}, False),
        ({"mask": torch.zeros(2, 2, 3, 9)}, False),
        ({"mask": torch.ones(2, 1, 3, 9, dtype=torch.bool)}, False),
        ({"keys": 3000}, False),
    ],
)
def test_where_it_does_not_serve(library, change, grad):
    width, keys = change.get("width", 32), change.get("keys", 9)
    dtype, mask = change.get("dtype", torch.float32), change.get("mask")
    query, key = (
        torch.randn(2, 2, 3, width, dtype=dtype),
        torch.randn(2, 2, keys, width, dtype=dtype),
    )
    with torch.set_grad_enabled(grad):
        assert native.attend(query, key, key, mask) is None


@pytest.mark.parametrize(("rows", "columns", "count"), [(1, 7, 2), (5, 200, 10), (3, 64, 64)])
def test_best_continuations_are_the_largest_sums(kernels, rows, columns, count):
    values = torch.randn(4 * rows, columns, generator=torch.Generator().manual_seed(3))
    offsets = torch.randn(4, rows + 1, 2)[:, :rows, -1]
    sums, origins, tokens = top_continuations(values, offsets, count)
    every = (values.view(4, rows, columns) + offsets[:, :, None]).flatten(1)
    assert torch.equal(sums, every.topk(count)[0])
    assert torch.equal(every.gather(1, origins * columns + tokens), sums)


def test_what_is_impossible_is_never_chosen(kernels):
    values = torch.full((2, 300), -math.inf)
    values[0, 7], values[0, 150], values[1, 299] = -1.0, math.nan, -2.0
    offsets = torch.tensor([[0.0, 0.5]])
    sums, origins, tokens = top_continuations(values, offsets, 4)
    assert sums.tolist() == [[-1.0, -1.5, -math.inf, -math.inf]]
    assert (origins[0, :2].tolist(), tokens[0, :2].tolist()) == ([0, 1], [7, 299])
    assert (origins < 2).all() and (tokens < 300).all()


@pytest.mark.parametrize("columns", [3, 16, 65, 4001])
def test_log_softmax_is_that_of_float64(library, columns):
    logits = 9 * torch.randn(5, columns, generator=torch.Generator().manual_seed(4)) - 50
    logits[1, 1:] = -math.inf
    logits[2, 0] = 400.0
    expected = logits.double().log_softmax(-1)
    found = native.log_softmax(logits)
    assert found is logits
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-6)


def test_a_diverged_row_is_nan_and_spoils_no_other(library):
    logits = torch.randn(3, 40)
    logits[1, 33], logits[2] = math.nan, -math.inf
    found = native.log_softmax(logits)
    assert found[0].isfinite().all() and found[1:].isnan().all()


def test_what_cannot_be_loaded_is_not_used(tmp_path, monkeypatch):
    broken = tmp_path / "native.so"
    broken.write_bytes(b"of another machine")
    assert native.load(broken) is None
    monkeypatch.setenv("DS_SEQ_NATIVE", "0")
    assert native.library.__wrapped__() is None


def test_kernels_of_other_sources_are_not_called(compiled, tmp_path, monkeypatch):
    for file in FOLDER.glob("native*"):
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(native_sources, "__file__", str(tmp_path / "native_sources.py"))
    assert native.load(Path(compiled._name)) is not None
    header = tmp_path / "native_step.h"
    header.write_text(header.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="its sources have changed.* pip install"):
        assert native.load(Path(compiled._name)) is None
