"""Starting with the weights of another run, dense or not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.runs.export import export
from ds_seq.surgery.upcycle import start_from
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.weights.fill import expert_offsets
from tests.batches import mark_every_third, score
from tests.data.vocabulary import train_vocab
from tests.unit.runs.made import experiment, write_run

NORMALIZED = {"num_experts": 4, "top_k": 1, "normalize_weights": "after_dropping"}
TWO = {"num_experts": 4, "top_k": 2}
SPARSE = ("encoder.layers.1.feed_forward", "decoder.layers.1.feed_forward")


def _scrambled(model: nn.Module) -> nn.Module:
    """Every parameter as if trained: no bias is zero, no scale is one."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


@pytest.fixture
def dense_run(
    tmp_path: Path, vocab: SentencePieceTokenizer
) -> Callable[..., tuple[Path, nn.Module]]:
    """`dense_run(**model)`: a run folder and the model in it."""

    def make(**model: Any) -> tuple[Path, nn.Module]:
        config = experiment(model)
        net = _scrambled(build_model(config.model, len(vocab), 1, 0, seed=2))
        return write_run(tmp_path / "old", config, vocab, {5: net}), net

    return make


def _settings(run: Path, model: dict[str, Any], **train: Any) -> ExperimentConfig:
    config = experiment({"dropout": 0.0, **model})
    changes = {"init_from": str(run), **train}
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def _started(
    config: ExperimentConfig, vocab: SentencePieceTokenizer, expert_parallel: int = 1, part: int = 0
) -> nn.Module:
    model = build_model(config.model, len(vocab), expert_parallel, part, seed=7)
    start_from(model, config, vocab.fingerprint)
    return model


def _logits(model: nn.Module, vocab: SentencePieceTokenizer) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    src = torch.randint(4, len(vocab), (3, 6), generator=generator)
    tgt = torch.randint(4, len(vocab), (3, 5), generator=generator)
    src[0, 4:] = 1
    with torch.no_grad():
        logits = score(model.eval(), src, tgt).logits
    return logits


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
@pytest.mark.parametrize(
    "moe",
    [
        NORMALIZED,
        TWO,
        {**TWO, "residual": True},
        {**NORMALIZED, "shared_experts": 1},
        {**TWO, "shared_experts": 3},
        {**TWO, "conditional_budget": 0.5},
        {**TWO, "num_experts": [2, 6]},
    ],
)
def test_an_upcycled_model_starts_as_the_dense_one(
    dense_run: Callable[..., tuple[Path, nn.Module]],
    vocab: SentencePieceTokenizer,
    moe: dict[str, Any],
    activation: str,
) -> None:
    run, dense = dense_run(activation=activation)
    model = _started(_settings(run, {"activation": activation, "moe": moe}), vocab)
    expected = _logits(dense, vocab)
    torch.testing.assert_close(_logits(model, vocab), expected, rtol=1e-5, atol=1e-5)
    for name in SPARSE:  # and that is no accident: the experts matter
        model.get_parameter(f"{name}.experts.w2").data.mul_(0.5)
    assert not torch.allclose(_logits(model, vocab), expected, atol=1e-2)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("moe", [TWO, {**TWO, "residual": True}])
def test_norms_of_hidden_units_are_copied_to_every_expert(
    dense_run: Callable[..., tuple[Path, nn.Module]],
    vocab: SentencePieceTokenizer,
    moe: dict[str, Any],
    norm: str,
) -> None:
    section = {"norm_position": "subln", "norm": norm}
    run, dense = dense_run(**section)
    model = _started(_settings(run, {**section, "moe": moe}), vocab)
    expected = _logits(dense, vocab)
    torch.testing.assert_close(_logits(model, vocab), expected, rtol=1e-5, atol=1e-5)
    shared = {**section, "moe": {**TWO, "shared_experts": 1}}
    with pytest.raises(UserError, match="shared experts with norm_position subln"):
        _started(_settings(run, shared), vocab)


def test_without_normalization_the_start_is_another(
    dense_run: Callable[..., tuple[Path, nn.Module]], vocab: SentencePieceTokenizer
) -> None:
    run, dense = dense_run()
    for moe in ({"num_experts": 4, "top_k": 1}, {**TWO, "normalize_weights": "none"}):
        model = _started(_settings(run, {"moe": moe}), vocab)
        difference = (_logits(model, vocab) - _logits(dense, vocab)).abs().max()
        assert difference > 1e-2


@pytest.mark.parametrize("shared", [1, 2])
def test_routed_and_shared_experts_both_learn(
    dense_run: Callable[..., tuple[Path, nn.Module]], vocab: SentencePieceTokenizer, shared: int
) -> None:
    run, _ = dense_run()
    model = _started(_settings(run, {"moe": {**TWO, "shared_experts": shared}}), vocab)
    src = torch.randint(4, len(vocab), (4, 9))
    score(model.train(), src, src).logits.square().sum().backward()
    for part in ("experts.w1", "experts.w2", "branch.dense.up.weight", "branch.dense.down.weight"):
        gradient = model.get_parameter(f"{SPARSE[0]}.{part}").grad
        assert gradient is not None and gradient.abs().max() > 0, part
    # hidden units of the shared part that are no copies would stay as they are without this
    down = model.get_parameter(f"{SPARSE[0]}.branch.dense.down.weight").grad
    assert down is not None and down[:, 24 * (shared - 1) :].abs().max() > 0


def test_experts_are_equal_without_noise_and_the_gate_is_fresh(
    dense_run: Callable[..., tuple[Path, nn.Module]], vocab: SentencePieceTokenizer
) -> None:
    run, dense = dense_run()
    config = _settings(run, {"moe": TWO})
    model = _started(config, vocab)
    drawn = build_model(config.model, len(vocab), 1, 0, seed=7)
    for name in SPARSE:
        experts = model.get_parameter(f"{name}.experts.w1")
        assert all(torch.equal(expert, experts[0]) for expert in experts)
        gate = f"{name}.gate.weight"
        assert torch.equal(model.get_parameter(gate), drawn.get_parameter(gate))
    name = "decoder.layers.0.cross_attention.query.weight"
    assert torch.equal(model.get_parameter(name), dense.get_parameter(name))


def test_noise_is_in_units_of_each_matrix_and_the_same_in_every_layout(
    dense_run: Callable[..., tuple[Path, nn.Module]], vocab: SentencePieceTokenizer
) -> None:
    run, _ = dense_run()
    plain = _started(_settings(run, {"moe": TWO}), vocab)
    config = _settings(run, {"moe": TWO}, upcycle_noise=0.5)
    whole = _started(config, vocab)
    parts = [_started(config, vocab, 2, part) for part in (0, 1)]
    for name in expert_offsets(whole):
        together = torch.cat([part.get_parameter(name) for part in parts])
        noisy, clean = whole.get_parameter(name).detach(), plain.get_parameter(name).detach()
        assert torch.equal(together, noisy), name
        if name.endswith(("w1", "w2")):
            for expert in range(4):
                ratio = (noisy - clean)[expert].std() / clean[expert].std()
                assert ratio == pytest.approx(0.5, rel=0.15), name
            noise = (noisy - clean).flatten(1)
            correlations = torch.corrcoef(noise) - torch.eye(4)
            assert correlations.abs().max() < 0.25, "each expert has noise of its own"
        else:
            assert torch.equal(noisy, clean)
    first, second = (whole.get_parameter(f"{name}.experts.w1") for name in SPARSE)
    clean_first, clean_second = (plain.get_parameter(f"{name}.experts.w1") for name in SPARSE)
    assert not torch.allclose(first - clean_first, second - clean_second, atol=1e-2)


@pytest.mark.parametrize("moe", [None, TWO])
@pytest.mark.parametrize("kind", ["run", "folder", "file"])
def test_the_same_architecture_starts_where_the_other_run_ended(
    tmp_path: Path, vocab: SentencePieceTokenizer, moe: dict[str, Any] | None, kind: str
) -> None:
    config = experiment({"moe": moe})
    models = {n: _scrambled(build_model(config.model, len(vocab), 1, 0, seed=n)) for n in (10, 20)}
    run = write_run(tmp_path / "old", config, vocab, models)
    source, last = run, {"init_checkpoint": "last"}
    if kind != "run":
        name = "new" if kind == "folder" else "new.safetensors"
        file, last = export(run, tmp_path / name, "last"), {}
        source = file.parent if kind == "folder" else file
    model = _started(_settings(source, {"moe": moe}, **last), vocab)
    for name, value in models[20].named_parameters():
        assert torch.equal(model.get_parameter(name), value), name


REFUSED = [
    (
        {"moe": {**TWO, "ffn_dim": 32}},
        r"feed_forward.up.weight has shape \(24, 16\), .* \(32, 16\)",
    ),
    ({"d_model": 32}, r"qkv.weight has shape \(48, 16\), the model expects \(96, 32\)"),
    ({"encoder_layers": 3}, "has no tensor 'encoder.layers.2."),
    ({"decoder_layers": 1}, "has 'decoder.layers.1.*which the model does not have"),
    ({"num_heads": 4, "moe": TWO}, "has model.num_heads 2, the experiment 4"),
    ({"activation": "gelu"}, "has model.activation relu, the experiment gelu"),
]


@pytest.mark.parametrize(("model", "message"), REFUSED)
def test_models_that_do_not_fit(
    dense_run: Callable[..., tuple[Path, nn.Module]],
    vocab: SentencePieceTokenizer,
    model: dict[str, Any],
    message: str,
) -> None:
    run, _ = dense_run()
    with pytest.raises(UserError, match=message) as raised:
        _started(_settings(run, model), vocab)
    assert str(run) in str(raised.value) and "\n" not in str(raised.value)


MULTIWAY = {"multiway": {"markers": {"a": 0, "b": 1}, "placement": "encoder"}}


def test_experts_do_not_start_from_several_sets_but_other_layers_may_have_them(
    dense_run: Callable[..., tuple[Path, nn.Module]], vocab: SentencePieceTokenizer
) -> None:
    run, dense = dense_run(**MULTIWAY)
    model = _started(
        _settings(run, {**MULTIWAY, "moe": {**NORMALIZED, "placement": "decoder"}}), vocab
    )
    mark_every_third(dense)
    mark_every_third(model)
    expected = _logits(dense, vocab)
    torch.testing.assert_close(_logits(model, vocab), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"encoder.layers.1.feed_forward has several sets of"):
        _started(_settings(run, {**MULTIWAY, "moe": TWO}), vocab)


def test_experts_do_not_start_from_a_feed_forward_with_a_low_rank_change(
    dense_run: Callable[..., tuple[Path, nn.Module]], vocab: SentencePieceTokenizer
) -> None:
    lora = {"lora": {"rank": 2, "modules": ["up", "down"]}}
    run, _ = dense_run(**lora)
    with pytest.raises(UserError, match="low-rank change.* merge it first: ds-seq export --merge"):
        _started(_settings(run, {**lora, "moe": TWO}), vocab)


def test_experts_do_not_become_a_dense_model(tmp_path: Path, vocab: SentencePieceTokenizer) -> None:
    config = experiment({"moe": TWO})
    run = write_run(
        tmp_path / "old", config, vocab, {1: build_model(config.model, len(vocab), 1, 0, seed=1)}
    )
    with pytest.raises(UserError, match="has no tensor 'encoder.layers.1.feed_forward.up.weight'"):
        _started(_settings(run, {"moe": None}), vocab)
    with pytest.raises(UserError, match=r"gate.weight has shape \(4, 16\), .* \(2, 16\)"):
        _started(_settings(run, {"moe": {"num_experts": [4, 2], "top_k": 2}}), vocab)


def test_rounding_may_begin_with_trained_weights_but_not_end(
    dense_run: Callable[..., tuple[Path, nn.Module]], vocab: SentencePieceTokenizer
) -> None:
    """A model with ordinary maps is a start for ternary experts; rounded ones mean nothing else."""
    run, old = dense_run()
    started = _started(_settings(run, {"linear": "bitnet", "moe": TWO}), vocab)
    name = "encoder.layers.0.self_attention.qkv.weight"
    assert torch.equal(started.get_parameter(name), old.get_parameter(name))
    up = started.get_parameter(f"{SPARSE[0]}.experts.w1")
    assert torch.equal(up[1].T, old.get_parameter(f"{SPARSE[0]}.up.weight"))
    rounded = _settings(run, {"linear": "bitnet"})
    shutil.rmtree(run)
    write_run(run, rounded, vocab, {5: build_model(rounded.model, len(vocab), 1, 0, seed=2)})
    with pytest.raises(UserError, match="has model.linear .*bitnet.*, the experiment float"):
        _started(_settings(run, {}), vocab)


def test_another_vocabulary_is_refused(
    dense_run: Callable[..., tuple[Path, nn.Module]], tmp_path: Path, text: Path
) -> None:
    run, _ = dense_run()
    other = train_vocab([text / "train.en", text / "train.de"], tmp_path / "v", 131)
    with pytest.raises(UserError, match="train.init_from: .*old has vocabulary .*the data"):
        _started(_settings(run, {"moe": TWO}), other)


def test_noise_needs_a_run_to_start_from() -> None:
    with pytest.raises(ValueError, match="init_from, which is null"):
        ExperimentConfig.model_validate(
            {**experiment({}).model_dump(), "train": {"upcycle_noise": 0.1}}
        )
