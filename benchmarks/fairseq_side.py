"""fairseq's side of train_throughput.py: fairseq's own Trainer on given batches.

Runs in the virtual environment that train_throughput.py creates; usage: fairseq_side.py SETUP.json
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker import Channel, Stopwatch


class SentencesFromArrays:
    """A fairseq dataset of sentences stored back to back in one array.

    Args:
        tokens: (N,) ids of all sentences, the end symbol included.
        offsets: (n + 1,) where each sentence begins.
    """

    def __init__(self, tokens: Any, offsets: Any) -> None:
        import torch

        self._tokens = torch.from_numpy(tokens.astype("int64"))
        self._offsets = offsets
        self.sizes = offsets[1:] - offsets[:-1]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Any:
        return self._tokens[self._offsets[index] : self._offsets[index + 1]]


class FairseqSystem:
    """fairseq as set up by its command line, but with the sentences of every batch given.

    Args:
        setup: settings written by train_throughput.py: sizes, threads, seed, path of the batches.
    """

    def __init__(self, setup: dict[str, Any]) -> None:
        import fairseq
        import numpy as np
        import torch
        from fairseq import options
        from fairseq.data import LanguagePairDataset
        from fairseq.data.iterators import EpochBatchIterator, GroupedIterator
        from fairseq.dataclass.utils import convert_namespace_to_omegaconf
        from fairseq.tasks.translation import TranslationTask
        from fairseq.trainer import Trainer

        torch.set_num_threads(setup["threads"])
        parser = options.get_training_parser()
        args = options.parse_args_and_arch(parser, input_args=command_line(setup))
        config = convert_namespace_to_omegaconf(args)
        dictionary = make_dictionary(setup["vocab_size"])
        task = TranslationTask(config.task, dictionary, dictionary)
        torch.manual_seed(setup["seed"])
        model = task.build_model(config.model)
        self._trainer = Trainer(config, task, model, task.build_criterion(config.criterion))

        arrays = np.load(setup["batches"])
        source = SentencesFromArrays(arrays["src_tokens"], arrays["src_offsets"])
        target = SentencesFromArrays(arrays["tgt_tokens"], arrays["tgt_offsets"])
        dataset = LanguagePairDataset(
            source,
            source.sizes,
            dictionary,
            target,
            target.sizes,
            dictionary,
            left_pad_source=False,
        )
        bounds = arrays["batch_offsets"]
        batches = [
            arrays["batch_indices"][bounds[i] : bounds[i + 1]].tolist()
            for i in range(len(bounds) - 1)
        ]
        epoch = EpochBatchIterator(
            dataset,
            dataset.collater,
            batch_sampler=batches,
            num_workers=config.dataset.num_workers,
            buffer_size=config.dataset.data_buffer_size,
            disable_shuffling=True,
        )
        self._trainer.begin_epoch(1)
        self._updates: Iterator[Any] = iter(GroupedIterator(epoch.next_epoch_itr(), 1))
        self.num_parameters = sum(p.numel() for p in model.parameters())
        self.versions = f"fairseq {fairseq.__version__}, torch {torch.__version__}"

    def run(self, updates: int) -> tuple[int, float]:
        """Perform what the loop of fairseq_cli.train does between two log entries."""
        from fairseq.logging import metrics

        target_tokens, loss = 0, math.nan
        with metrics.aggregate("train"):
            for _ in range(updates):
                samples = next(self._updates)
                with metrics.aggregate("train_inner"):
                    log = self._trainer.train_step(samples)
                target_tokens += sum(sample["ntokens"] for sample in samples)
                loss = float(log["nll_loss"]) * math.log(2)
        return target_tokens, loss


def make_dictionary(size: int) -> Any:
    """Return a fairseq dictionary with the same ids of the four special symbols as ours."""
    from fairseq.data import Dictionary

    dictionary = Dictionary()
    for index in range(len(dictionary), size):
        dictionary.add_symbol(f"piece{index}")
    assert len(dictionary) == size
    return dictionary


def command_line(setup: dict[str, Any]) -> list[str]:
    """Return the options of `fairseq-train` that describe the common setup."""
    layers, width = str(setup["layers"]), str(setup["d_model"])
    flags = ["--cpu", "--no-progress-bar", "--share-all-embeddings"]
    values = {
        "--task": "translation",
        "--arch": "transformer",
        "--encoder-layers": layers,
        "--decoder-layers": layers,
        "--encoder-embed-dim": width,
        "--decoder-embed-dim": width,
        "--encoder-ffn-embed-dim": str(setup["ffn_dim"]),
        "--decoder-ffn-embed-dim": str(setup["ffn_dim"]),
        "--encoder-attention-heads": str(setup["num_heads"]),
        "--decoder-attention-heads": str(setup["num_heads"]),
        "--dropout": str(setup["dropout"]),
        "--criterion": "label_smoothed_cross_entropy",
        "--label-smoothing": str(setup["label_smoothing"]),
        "--optimizer": "adam",
        "--adam-betas": "(0.9, 0.98)",
        "--lr": str(setup["lr"]),
        "--lr-scheduler": "inverse_sqrt",
        "--warmup-updates": str(setup["warmup_updates"]),
        "--clip-norm": "0.0",
        "--max-tokens": str(setup["max_tokens"]),
        "--seed": str(setup["seed"]),
        "--num-workers": "1",
    }
    return ["unused", *flags, *(word for pair in values.items() for word in pair)]


def main() -> None:
    """Execute the commands of train_throughput.py."""
    channel = Channel()
    system = FairseqSystem(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    channel.ready(system.num_parameters, system.versions)
    while (command := channel.command()) is not None:
        assert command.verb == "run", f"this system only trains: {command}"
        watch = Stopwatch()
        channel.done(watch.block(command.number, *system.run(command.number)))


if __name__ == "__main__":
    main()
