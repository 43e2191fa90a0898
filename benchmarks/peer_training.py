"""train_throughput.py: how Hugging Face, JoeyNMT and eole train, each in its own environment.

Usage: peer_training.py SYSTEM SETUP.json. Each trains with its own loop, loss and optimizer on the
batches of `throughput_setup.py`, which it waits for whenever the requested updates are done.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import starmap
from pathlib import Path
from typing import Any, Protocol

from peer_models import (
    BOS,
    EOS,
    JOEYNMT_SYMBOLS,
    PAD,
    Sizes,
    eole_model,
    joeynmt_model,
    padded,
)
from worker import Channel, Stopwatch

Rows = list[list[int]]
"""Sentences of a batch, with end symbols."""
Pairs = tuple[Rows, Rows]
"""Sources and targets."""

BETAS = (0.9, 0.98)
WITHOUT_END = 10**9  # updates
IGNORED = -100  # label of padding


class HeldBatches:
    """Yield the batches of as many updates as the parent requests, and time them.

    An update ends when the next batch is requested.

    Args:
        channel: connection to the parent.
        path: arrays written by `throughput_setup.py`.
    """

    def __init__(self, channel: Channel, path: Path) -> None:
        import numpy as np

        arrays = np.load(path)
        self._source, self._target = (
            np.split(arrays[f"{side}_tokens"], arrays[f"{side}_offsets"][1:-1])
            for side in ("src", "tgt")
        )
        self._batches = iter(np.split(arrays["batch_indices"], arrays["batch_offsets"][1:-1]))
        self._channel = channel
        self._left = self._asked = self._tokens = 0
        self._watch = Stopwatch()

    def __iter__(self) -> HeldBatches:
        return self

    def __next__(self) -> Pairs:
        if self._left == 0:
            self._wait()
        self._left -= 1
        batch = next(self._batches)
        source, target = (
            [side[i].tolist() for i in batch] for side in (self._source, self._target)
        )
        self._tokens += sum(map(len, target))
        return source, target

    def _wait(self) -> None:
        if self._asked:
            self._channel.done(self._watch.block(self._asked, self._tokens, math.nan))
        command = self._channel.command()
        if command is None:
            raise SystemExit(0)
        assert command.verb == "run", f"this system only trains: {command}"
        self._asked = self._left = command.number
        self._tokens = 0
        self._watch = Stopwatch()


class System(Protocol):
    """A toolkit that trains."""

    model: Any
    package: str

    def train(self, batches: Iterator[Pairs]) -> None:
        """Train on all batches."""


class HuggingFace:
    """`Seq2SeqTrainer` of transformers with a Marian model, the post-norm one without more norms.

    Args:
        setup: settings written by `throughput_setup.py`.
    """

    package = "transformers"

    def __init__(self, setup: dict[str, Any]) -> None:
        from transformers import MarianConfig, MarianMTModel

        sides = ("encoder", "decoder")
        self._setup = setup
        self.model: Any = MarianMTModel(
            MarianConfig(
                vocab_size=setup["vocab_size"],
                d_model=setup["d_model"],
                **{f"{side}_layers": setup["layers"] for side in sides},
                **{f"{side}_ffn_dim": setup["ffn_dim"] for side in sides},
                **{f"{side}_attention_heads": setup["num_heads"] for side in sides},
                activation_function="relu",
                dropout=setup["dropout"],
                scale_embedding=True,
                bos_token_id=BOS,
                pad_token_id=PAD,
                eos_token_id=EOS,
                forced_eos_token_id=None,
                decoder_start_token_id=EOS,
            )
        )

    def train(self, batches: Iterator[Pairs]) -> None:
        """See `System`."""
        from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

        setup = self._setup
        arguments = Seq2SeqTrainingArguments(
            output_dir=str(Path(setup["batches"]).parent / "huggingface"),
            max_steps=WITHOUT_END,
            optim="adamw_torch",
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            learning_rate=setup["lr"],
            lr_scheduler_type="inverse_sqrt",
            warmup_steps=setup["warmup_updates"],
            label_smoothing_factor=setup["label_smoothing"],
            max_grad_norm=0.0,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer: Any = Seq2SeqTrainer(model=self.model, args=arguments)
        trainer.get_train_dataloader = lambda: starmap(self._inputs, batches)
        trainer.train()

    def _inputs(self, source: Rows, target: Rows) -> dict[str, Any]:
        ids, labels = padded(source), padded(target)
        return {
            "input_ids": ids,
            "attention_mask": (ids != PAD).long(),
            "decoder_input_ids": padded([[EOS, *row[:-1]] for row in target]),
            "labels": labels.masked_fill(labels == PAD, IGNORED),
        }


class JoeyNMT:
    """JoeyNMT's model, loss, optimizer and schedule, in the order of its training loop.

    Args:
        setup: settings written by `throughput_setup.py`.
    """

    package = "joeynmt"

    def __init__(self, setup: dict[str, Any]) -> None:
        from joeynmt.builders import build_optimizer, build_scheduler

        self.model = joeynmt_model(_sizes(setup, "post"))
        self.model.loss_function = ("crossentropy", setup["label_smoothing"])
        section = {
            "optimizer": "adam",
            "adam_betas": BETAS,
            "learning_rate": setup["lr"],
            "scheduling": "warmupinversesquareroot",
            "learning_rate_warmup": setup["warmup_updates"],
        }
        self._optimizer = build_optimizer(section, self.model.parameters())
        self._scheduler, _ = build_scheduler(section, self._optimizer, "max", setup["d_model"])

    def train(self, batches: Iterator[Pairs]) -> None:
        """See `System`."""
        for step, batch in enumerate(starmap(self._batch, batches)):
            self.model.train()
            batch.sort_by_src_length()
            loss, _, _, correct = self.model(return_type="loss", **vars(batch))
            loss = batch.normalize(loss, normalization="tokens")
            loss.backward()
            loss.item(), correct.item()  # read for the log, as there
            self._optimizer.step()
            self._scheduler.step(step)
            self.model.zero_grad()

    def _batch(self, source: Rows, target: Rows) -> Any:
        import torch
        from joeynmt.batch import Batch

        places = {ours: index for index, ours in enumerate(JOEYNMT_SYMBOLS)}
        source, target = ([[places.get(i, i) for i in row] for row in side]
                          for side in (source, target))  # fmt: skip
        return Batch(
            src=padded(source),
            src_length=torch.tensor([len(row) for row in source]),
            src_prompt_mask=None,
            trg=padded([[places[BOS], *row] for row in target]),
            trg_prompt_mask=None,
            indices=torch.arange(len(source)),
            device=torch.device("cpu"),
            pad_index=places[PAD],
            eos_index=places[EOS],
        )


class Eole:
    """eole's trainer, with a pre-norm model.

    Args:
        setup: settings written by `throughput_setup.py`.
    """

    package = "eole"

    def __init__(self, setup: dict[str, Any]) -> None:
        from eole.trainer import build_trainer
        from eole.utils.optimizers import Optimizer

        made = eole_model(
            _sizes(setup, "pre"),
            {
                "param_init_method": "xavier_uniform",
                "optim": "adam",
                "adam_beta1": BETAS[0],
                "adam_beta2": BETAS[1],
                "learning_rate": setup["lr"],
                "decay_method": "rsqrt",
                "warmup_steps": setup["warmup_updates"],
                "label_smoothing": setup["label_smoothing"],
                "max_grad_norm": 0,
                "normalization": "tokens",
                "log_attention_entropy": False,
            },
        )
        self.model = made.model
        optimizer = Optimizer.from_config(made.model, made.config)
        self._trainer: Any = build_trainer(
            made.config, -1, made.model, made.vocabularies, optimizer
        )

    def train(self, batches: Iterator[Pairs]) -> None:
        """See `System`."""
        stream = ((batch, 0) for batch in starmap(self._batch, batches))
        self._trainer.train(stream, WITHOUT_END, save_checkpoint_steps=0)

    def _batch(self, source: Rows, target: Rows) -> dict[str, Any]:
        import torch

        return {
            "src": padded(source),
            "srclen": torch.tensor([len(row) for row in source]),
            "tgt": padded([[EOS, *row] for row in target]),
            "images": None,
            "prefix_len": None,
            "cid": [],
            "cid_line_number": [],
        }


def _sizes(setup: dict[str, Any], norm_position: str) -> Sizes:
    names = ("vocab_size", "layers", "d_model", "ffn_dim", "num_heads", "dropout")
    return Sizes(*(setup[name] for name in names), norm_position)


SYSTEMS: dict[str, Callable[[dict[str, Any]], System]] = {
    "Hugging Face": HuggingFace,
    "JoeyNMT": JoeyNMT,
    "eole": Eole,
}


def main() -> None:
    """Execute the commands of train_throughput.py."""
    channel = Channel()
    setup = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(setup["threads"])
    torch.manual_seed(setup["seed"])
    system = SYSTEMS[sys.argv[1]](setup)
    parameters = sum(p.numel() for p in system.model.parameters() if p.requires_grad)
    versions = f"{system.package} {version(system.package)}, torch {torch.__version__}"
    channel.ready(parameters, versions)
    system.train(HeldBatches(channel, Path(setup["batches"])))


if __name__ == "__main__":
    main()
