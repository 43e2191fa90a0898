"""`ds-seq show-batch`: print what the model reads, as text and as ids."""

from __future__ import annotations

from collections.abc import Sequence

from ds_seq.commands.arguments.show_batch import build_parser
from ds_seq.config.load import load_experiment
from ds_seq.config.outside import TRAINING
from ds_seq.data.batch import Batch, Seq2SeqInputs
from ds_seq.data.source import Dataset, InParts
from ds_seq.data.stream import Legs
from ds_seq.data.text_batch import TextInputs
from ds_seq.errors import UserError
from ds_seq.tasks import build_task
from ds_seq.tasks.base import Task
from ds_seq.tasks.mix import build_mix, collate_in
from ds_seq.text.tokenizer import Tokenizer
from ds_seq.training.inputs import train_sampler


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq show-batch`; return the exit code."""
    arguments = build_parser().parse_intermixed_args(argv)
    config = load_experiment(arguments.experiment, arguments.overrides, TRAINING)
    task = build_task(config.task, config.data)
    dataset = task.dataset("train")
    train = config.train
    sampler = train_sampler(config, dataset, 0, 1)
    legs = Legs(sampler, build_mix(config.data, train.seed, dataset, sampler))
    collate = collate_in(task, dataset, train.seed)
    position, number = legs.start, 0
    while number < arguments.batch + arguments.count - 1:
        for indices in legs.batches(position):
            number += 1
            if arguments.batch <= number < arguments.batch + arguments.count and len(indices):
                title = f"batch {number}, epoch {position.epoch}"
                if legs.mix is not None and len(legs.mix.stages) > 1:
                    title += f", stage {legs.mix.stage(position.plan).name}"
                batch = collate(position)(indices)
                _print(title, batch, indices.tolist(), task, dataset, arguments.most)
        position = legs.after(position)
    return 0


def _print(
    title: str, batch: Batch, examples: Sequence[int], task: Task, dataset: Dataset, most: int
) -> None:
    inputs = batch.inputs
    if not isinstance(inputs, Seq2SeqInputs | TextInputs):
        raise UserError("ds-seq show-batch: knows only tasks with text of one side or two")
    is_text = isinstance(inputs, TextInputs)
    source, mask = inputs[:2]
    unit, read = ("block", "input") if is_text else ("pair", "source")
    size = f"{batch.num_sentences} {'blocks' if is_text else 'sentences'}"
    size += f", {tuple(source.shape)} {read} ids"
    print(f"{title}: {size}, {tuple(batch.labels.shape)} target ids")
    for number in range(min(most, batch.num_sentences)):
        where = f"{unit} {int(batch.indices[number]) + 1}"
        if isinstance(dataset, InParts):
            part = int(dataset.part_of(batch.indices.new_tensor(examples).numpy())[number])
            name, rows = dataset.parts[part].name, dataset.parts[part].rows
            where = f"{name}, {unit} {int(batch.indices[number]) - rows.start + 1}"
        print(f"  {number + 1}: {where}")
        for side, ids, tokenizer in (
            (f"{read:6}", source[number][mask[number]], task.tokenizers.source),
            ("target", batch.labels[number][batch.mask[number]], task.tokenizers.target),
        ):
            for line in _lines(ids.tolist(), tokenizer):
                print(f"    {side} {line}")


def _lines(ids: list[int], tokenizer: Tokenizer) -> tuple[str, str, str]:
    return (
        f"text   {tokenizer.decode(ids)}",
        f"pieces {' '.join(tokenizer.pieces(ids))}",
        f"ids    {' '.join(map(str, ids))}",
    )
