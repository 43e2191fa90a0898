"""Layer-wise distillation and frozen parts, spread over ranks: one loop in plain torch for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ds_seq import distributed
from ds_seq.config.distillation import AttentionConfig, HiddenConfig
from ds_seq.config.model import MoeConfig, TransformerConfig
from ds_seq.criterions import attention_term, hidden_term
from ds_seq.criterions.layerwise import attention_loss, hidden_loss
from ds_seq.data.batch import Batch
from ds_seq.distill.projection import HiddenProjection, attach_projection
from ds_seq.models.build import build_seq2seq
from ds_seq.models.output import ModelOutput
from ds_seq.moe.balance import BiasBalancer
from ds_seq.names import HIDDEN_PROJECTION, ModelPart
from ds_seq.optim import build_optimizer
from ds_seq.optim.param_groups import parameter_groups
from ds_seq.training.engine import Engine
from ds_seq.training.state import WEIGHT, FullState
from ds_seq.training.trainable import FrozenCheck, freeze, frozen_parameters
from ds_seq.weights.fill import persistent_buffers
from tests.distributed import spine
from tests.distributed.harness import run_distributed

UPDATES, RANKS, PAD = 2, 2, 1
MOE = {"num_experts": 4, "top_k": 2, "capacity_factor": None}


class Case(NamedTuple):
    """A layout and what is frozen in it."""

    stage: int
    expert_parallel: int
    parts: tuple[ModelPart, ...]
    model: dict[str, Any]
    precision: str = "fp32"
    projects: bool = True

    @property
    def teacher_width(self) -> int:
        """Of the teacher; another one than the student's asks for a projection."""
        return 24 if self.projects else 16

    def prepare(self, net: nn.Module) -> None:
        """Freeze parts, and add the projection of hidden states."""
        freeze(net, self.parts)
        if self.projects:
            attach_projection(
                net, HiddenProjection(16, self.teacher_width, ("encoder", "decoder"), 3)
            )

    @property
    def config(self) -> TransformerConfig:
        """Of the student."""
        moe = MoeConfig.model_validate({**MOE, **self.model.get("moe", {})})
        return spine.model_config(**{**self.model, "moe": moe})


class Outcome(NamedTuple):
    """What a rank has after training."""

    losses: list[float]
    trained: dict[str, Tensor]
    frozen: dict[str, Tensor]


SMALL: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 1, "moe": {"every": 1}}
ENCODER: dict[str, Any] = {**SMALL, "moe": {"layers": {"encoder": [0]}}}
SIGMOID: dict[str, Any] = {**SMALL, "moe": {"every": 1, "router": "sigmoid"}}
LEARNED: dict[str, Any] = {**SIGMOID, "positions": "learned"}
CASES = [
    Case(3, 1, (), {"activation_checkpointing": True}),
    Case(1, 2, (), SMALL, projects=False),
    Case(0, 2, ("encoder",), ENCODER),
    Case(1, 2, ("encoder",), ENCODER),
    Case(2, 1, ("embeddings",), {**SMALL, "share_embeddings": "none"}),
    Case(3, 2, ("encoder",), ENCODER),
    Case(3, 1, ("encoder", "embeddings"), {**LEARNED, "activation_checkpointing": True}),
    Case(2, 2, ("encoder",), SIGMOID, "fp16"),
]


def _total(
    loss: Callable[[ModelOutput, Batch], Any], width: int
) -> Callable[[ModelOutput, Batch], Tensor]:
    """`loss`, and both layer-wise terms against a deeper teacher of a width."""
    config = spine.model_config(decoder_layers=3, moe=None, d_model=width)
    teacher = build_seq2seq(config, spine.VOCAB, 1, 0, seed=77)
    teacher.eval()

    @torch.no_grad()
    def teach(batch: Batch) -> Any:
        return teacher(batch.inputs, "attention").layers

    def total(output: ModelOutput, batch: Batch) -> Tensor:
        assert output.layers is not None
        pair = (output.layers, teach(batch))
        hidden = hidden_loss(*pair, batch, hidden_term(HiddenConfig(normalize=True)))
        value: Tensor = loss(output, batch).total + hidden
        return value + attention_loss(*pair, batch, attention_term(AttentionConfig()))

    return total


def _spread(case: Case) -> Outcome:
    engine = spine.make_engine(
        case.stage,
        case.expert_parallel,
        model=case.config,
        optimizer=spine.SGD,
        precision=case.precision,
        prepare=case.prepare,
        capture="attention",
    )
    check = FrozenCheck(engine.module)
    losses = _train(engine, case.teacher_width)
    check.verify()
    module = engine.module
    state = FullState(engine.deepspeed)
    frozen = {name: state.read(p, WEIGHT) for name, p in frozen_parameters(module)}
    kept = {name: value.clone() for name, value in frozen.items() if value is not None}
    kept.update((name, value.clone()) for name, value in persistent_buffers(module))
    if case.stage == 3 and case.parts:
        _tamper(module, check)
    return Outcome(losses, spine.all_weights(engine), kept)


def _train(engine: Engine, width: int) -> list[float]:
    total, world, rank = _total(spine.make_criterion(), width), RANKS, distributed.rank()
    balancer, losses = BiasBalancer(engine.module), []
    engine.module.train()
    for update in range(UPDATES):
        everyone = spine.batches(update)
        tokens, summed = sum(batch.num_tokens for batch in everyone), torch.zeros(())
        for batch in everyone[rank::world]:
            output = engine(batch)
            loss = total(output, batch)
            balancer.add(output.moe_stats)
            engine.backward(loss * (world * engine.accumulate / tokens))
            engine.step()
            summed += loss.detach()
        balancer.update()
        losses.append(float(distributed.sum_over_ranks(summed)) / tokens)
    return losses


def _tamper(module: nn.Module, check: FrozenCheck) -> None:
    """One bit, in the slice of one rank."""
    name, parameter = list(frozen_parameters(module))[-1]
    if distributed.rank() == RANKS - 1:
        piece = vars(parameter)["ds_tensor"].data
        piece[0] = torch.nextafter(piece[0], piece[0] + 1)
    with pytest.raises(AssertionError, match=f"{name} is frozen"):
        check.verify()


def _plain(case: Case) -> Outcome:
    """The same in one process, where `requires_grad` alone decides."""
    net = build_seq2seq(case.config, spine.VOCAB, 1, 0, seed=5).train()
    case.prepare(net)
    own = build_optimizer(spine.SGD, parameter_groups(net, 0.01))
    total = _total(spine.make_criterion(), case.teacher_width)
    balancer, losses = BiasBalancer(net), []
    for update in range(UPDATES):
        everyone = spine.batches(update)
        tokens, summed = sum(batch.num_tokens for batch in everyone), 0.0
        own.zero_grad()
        for batch in everyone:
            output = net(batch.inputs, "attention")
            loss = total(output, batch)
            balancer.add(output.moe_stats)
            (loss / tokens).backward()
            summed += loss.item()
        own.step()
        balancer.update()
        losses.append(summed / tokens)
    trained = {n: p.detach().clone() for n, p in net.named_parameters() if p.requires_grad}
    return Outcome(losses, trained, dict(persistent_buffers(net)))


def _all_cases() -> list[Outcome]:
    return [_spread(case) for case in CASES]


@pytest.fixture(scope="module")
def outcomes() -> list[list[Outcome]]:
    """For each case the outcome of each rank."""
    return list(zip(*run_distributed(_all_cases, RANKS), strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_every_layout_trains_what_plain_torch_does(
    outcomes: list[list[Outcome]], number: int
) -> None:
    case, ranks = CASES[number], outcomes[number]
    plain, start = _plain(case), build_seq2seq(case.config, spine.VOCAB, 1, 0, seed=5)
    case.prepare(start)
    exact = case.precision == "fp32"
    for rank, outcome in enumerate(ranks):
        assert outcome.losses == pytest.approx(plain.losses, rel=1e-5 if exact else 0.02)
        assert outcome.trained.keys() == plain.trained.keys()
        assert case.projects == (f"{HIDDEN_PROJECTION}.maps.decoder.weight" in plain.trained)
        for name, value in plain.trained.items() if exact else ():
            torch.testing.assert_close(outcome.trained[name], value, atol=1e-5, rtol=1e-5)
            assert not torch.equal(value, start.get_parameter(name)), name
        for name, value in outcome.frozen.items():
            if name.endswith("bias_steps"):
                if exact:
                    assert torch.equal(value, plain.frozen[name])
                assert name.startswith("decoder") == bool(value.any())
                continue
            want = start.get_parameter(name)
            if ".experts." in name:
                want = want.chunk(case.expert_parallel)[rank % case.expert_parallel]
            if not exact:
                want = want.to({"bf16": torch.bfloat16, "fp16": torch.float16}[case.precision])
            assert torch.equal(value, want.float()), name
        if case.parts:
            assert outcome.frozen
