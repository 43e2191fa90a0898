"""The command `ds-seq generate`: translate text with trained models.

ds-seq generate runs/x --input text.de --output text.en --reference reference.en
ds-seq generate model.safetensors --input text.de
ds-seq generate runs/x --input text.de --format jsonl --n-best 5
ds-seq generate runs/x runs/y --input text.de        # an ensemble of both models
zcat text.de.gz | ds-seq generate runs/x --input -   # translations are written while text arrives
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ds_seq import distributed
from ds_seq.commands.after_search import (
    build_steps,
    check_result_arguments,
    num_hypotheses,
    result_conditions,
    result_settings,
)
from ds_seq.commands.arguments.generate import BUFFER_SIZE, build_parser
from ds_seq.commands.arguments.shared import chosen_layers
from ds_seq.commands.options import (
    check_expert_parallel,
    chosen_device,
    load_chosen,
    search_settings,
)
from ds_seq.commands.results import add_result, check_results
from ds_seq.commands.steering import read_steering
from ds_seq.commands.target_languages import TargetLanguages, read_target_languages
from ds_seq.commands.text_scores import TextScorer, check_scored, chosen_scorer
from ds_seq.config.generation import GenerationConfig
from ds_seq.distributed import World
from ds_seq.errors import UserError
from ds_seq.generation.build import BATCH_SIZE
from ds_seq.generation.partial import Line, MemoryStore, PartialOutput, Settings
from ds_seq.generation.pipeline import Translator, translate_share, translate_stream
from ds_seq.generation.steering import Steering
from ds_seq.generation.translate import Share
from ds_seq.generation.workers import default_workers
from ds_seq.runs.card import LoadedRun, ModelCard
from ds_seq.runs.decoding import run_translator
from ds_seq.runs.open import default_dtype, weights_fingerprint
from ds_seq.scores.languages import language_warning
from ds_seq.scores.scoring import CorpusScore
from ds_seq.tasks.translation import read_raw
from ds_seq.text.lines import (
    STANDARD,
    check_counts,
    check_writable,
    read_lines,
    warn_of_lines,
    write_lines,
)
from ds_seq.text.samples import format_samples
from ds_seq.text.tags import untagged_message

_MIXED_OUTPUT = (
    "ds-seq: note: launchers write their log to standard output, too; --output FILE keeps the "
    "translations apart"
)


class _Text(NamedTuple):
    """The text to translate and its reference."""

    source: list[str]
    reference: list[str] | None


@dataclass(frozen=True)
class _Generation:
    """Models and settings of a translation, the same on every rank except for the device."""

    args: argparse.Namespace
    runs: list[LoadedRun]
    settings: GenerationConfig
    steering: Steering
    languages: TargetLanguages
    translator: Translator

    @property
    def card(self) -> ModelCard:
        """The first run's card, which determines everything except the models themselves."""
        return self.runs[0].card

    @property
    def target_lang(self) -> str:
        """Language of the translations, as far as metrics have to know it."""
        return self.languages.common or self.card.target_lang


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq generate`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    with distributed.joined(_limit(args)) as world:
        with distributed.shared_errors():
            _check_arguments(args, world.size)
            if world.is_first and world.size > 1 and args.output == STANDARD:
                print(_MIXED_OUTPUT, file=sys.stderr)
            text = None if args.input is None or _streams(args) else _read_input(args)
            generation = _load(args, world)
            if args.input is None:
                text = _read_test_split(generation, args.reference, args.output)
            if text is not None:
                generation.steering.check_counts(text.source)
                generation.languages.check_counts(text.source)
            scorer = None
            if text is not None and text.reference is not None:
                if not text.reference:
                    raise UserError("there is nothing to translate and score: the text is empty")
                scorer = chosen_scorer(args, generation.target_lang)
                warning = language_warning(text.reference, generation.target_lang)
                if warning is not None and world.is_first:
                    print(f"ds-seq: warning: the reference {warning}", file=sys.stderr)
        if text is None:
            _stream(generation)
        else:
            _translate(generation, text, scorer, world)
    return 0


def _limit(args: argparse.Namespace) -> float | None:
    """Return the limit of the watchdog; standard input may come at any time, or from a person."""
    return None if args.input == STANDARD else float(args.hang_seconds)


def _check_arguments(args: argparse.Namespace, world_size: int) -> None:
    """Check the arguments before anything takes time."""
    if args.input == STANDARD and world_size > 1:
        raise UserError(
            f"--input -: {world_size} processes cannot share standard input; give a file"
        )
    if args.n_best > 1 and args.format == "text":
        raise UserError(
            f"--n-best {args.n_best}: --format text has one translation per line; add --format "
            "tsv, jsonl or fairseq"
        )
    if args.resume and args.output == STANDARD:
        raise UserError("--resume: cannot resume standard output; add --output FILE")
    if args.workers is not None:
        if args.workers < 1:
            raise UserError(f"--workers {args.workers}: at least 1 is needed")
        if args.workers > 1 and args.expert_parallel > 1:
            raise UserError(
                f"--workers {args.workers}: --expert-parallel searches one batch at a time; "
                "leave out one of them"
            )
    if args.buffer_size is not None:
        if args.buffer_size < 1:
            raise UserError(f"--buffer-size {args.buffer_size}: at least 1 line is needed")
        if not _streams(args):
            raise UserError(
                "--buffer-size: only works with --input - and without --output, --reference, "
                "--prefix, --constraints, --target-langs and --samples, which need the whole text; "
                "leave it out"
            )
    check_result_arguments(args)
    check_expert_parallel(args.expert_parallel, world_size)
    _check_files(args)


def _check_files(args: argparse.Namespace) -> None:
    """Check that the outputs can be written, and are none of the inputs."""
    texts = (args.input, args.reference, args.prefix, args.constraints, args.allowed)
    inputs = [*texts, args.target_langs, *args.runs]
    check_writable(args.output, inputs)
    check_scored(args)
    if args.results is not None:
        check_results(args.results, [*inputs, args.output])


def _streams(args: argparse.Namespace) -> bool:
    """Return whether translations are written while text is still arriving."""
    per_line = (args.reference, args.prefix, args.constraints, args.target_langs)
    waits = any(path is not None for path in per_line) or args.samples > 0
    return args.input == STANDARD and args.output == STANDARD and not waits


def _read_input(args: argparse.Namespace) -> _Text:
    source = read_lines(args.input)
    if args.reference is None:
        return _Text(source, None)
    return _Text(source, _read_reference(source, args.input, args.reference))


def _read_reference(source: Sequence[str], name: str, path: str) -> list[str]:
    reference = read_lines(path)
    check_counts(source, name, reference, path)
    return reference


def _read_test_split(generation: _Generation, reference: str | None, output: str) -> _Text:
    """Read the test text, with the tags that the experiment gives it unless an option does."""
    card = generation.card
    if card.reads_prompts:
        raise UserError(f"--input: missing: {card.name} is a language model; give it prompts")
    if not card.test:
        raise UserError("data.raw.test: is empty; give --input FILE")
    check_writable(output, chain.from_iterable(card.test))
    text = read_raw("test", card.test, () if generation.languages.are_given else card.test_tags)
    if reference is None:
        return _Text(text.source, text.target)
    return _Text(text.source, _read_reference(text.source, "data.raw.test", reference))


def _load(args: argparse.Namespace, world: World) -> _Generation:
    """Load the models, and check that they fit each other and the arguments."""
    steering, languages = read_steering(args), read_target_languages(args)
    device = chosen_device(args, world)
    if args.part is not None and len(args.runs) > 1:
        raise UserError(f"--part {args.part}: belongs to one model, and there are {len(args.runs)}")
    runs = [load_chosen(name, args, device, args.expert_parallel) for name in args.runs]
    first = runs[0]
    for name, run in zip(args.runs, runs, strict=True):
        if run.tokenizers.fingerprint != first.tokenizers.fingerprint:
            raise UserError(
                f"{name}: has another vocabulary than {args.runs[0]}; models that translate "
                "together need the same vocabulary"
            )
    settings = search_settings(first.card, args, result_settings(args))
    translator = run_translator(runs, settings, device, num_hypotheses(args, settings))
    spelling = steering.spelling(first.tokenizers.target)
    if world.is_first:
        steering.warn_of_equal_outputs(spelling)
    translator = replace(
        translator,
        search=steering.steer(translator.search, first.tokenizers.target),
        spelling=spelling,
        # a tag of the target says the language, too
        tags=translator.tags if steering.target_tag is None else None,
        tagged=languages.tagger(first.card),
        long_lines=args.long_lines or translator.long_lines,
        form=args.format,
        workers=default_workers(device) if args.workers is None else args.workers,
        steps=build_steps(args, runs, translator.limits, device, spelling),
        align=args.align,
        replace_unk=args.replace_unk,
    )
    return _Generation(args, runs, settings, steering, languages, translator)


def _stream(generation: _Generation) -> None:
    """Translate standard input as it arrives."""
    size = generation.args.buffer_size or (1 if sys.stdin.isatty() else BUFFER_SIZE)
    done = translate_stream(generation.translator, size)
    _report(generation.args, done.num_lines, 0, done.remarkable, done.seconds, 1)
    _report_untagged(generation, done.untagged)


def _translate(
    generation: _Generation, text: _Text, scorer: TextScorer | None, world: World
) -> None:
    """Translate this process's share of a whole text; the first process writes and reports all."""
    args = generation.args
    any_rank = distributed.any_rank if args.expert_parallel > 1 else None
    share = Share(world.rank, world.size, any_rank)
    partial = None if args.output == STANDARD else PartialOutput(Path(args.output))
    done: list[int] = []
    with distributed.shared_errors():
        reading = generation.translator.read(text.source)
        if partial is not None and world.is_first:
            done = partial.begin(_conditions(generation, text), args.resume)
    done = distributed.broadcast_object(done)
    with distributed.shared_errors():
        store = MemoryStore() if partial is None else partial.store(world.rank)
    started = time.monotonic()
    lines = translate_share(generation.translator, reading, text.reference, share, done, store)
    if lines is None:
        return
    if len(lines) != len(text.source):
        raise UserError(
            f"{args.output}: {len(text.source) - len(lines):,} of {len(text.source):,} lines are "
            "missing; all processes need the same file system"
        )
    seconds = time.monotonic() - started
    _report(args, len(lines), len(done), lines, seconds, world.size)
    _report_untagged(generation, reading.untagged)
    reference = None if text.reference is None else generation.steering.without_tag(text.reference)
    scores = _finish(args, lines, _Text(text.source, reference), scorer)
    if args.results is not None:
        name = "data.raw.test" if args.input is None else args.input
        facts = _facts(generation, len(lines), len(done), seconds, world.size)
        add_result(args.results, name, scores, facts)
    if partial is not None:
        partial.remove()


def _conditions(generation: _Generation, text: _Text) -> Settings:
    """Return everything on which the output depends, to check it when a run is resumed."""
    args = generation.args
    written = [] if args.format != "fairseq" or text.reference is None else text.reference
    return {
        "input": _digest(text.source),
        "reference": _digest(written),
        "model": ",".join(map(weights_fingerprint, generation.runs)),
        "dtype": args.dtype or default_dtype(generation.card, generation.translator.device),
        **({} if args.adapter is None else {"adapter": args.adapter}),
        **{f"{stack}-layers-to-keep": kept for stack, kept in chosen_layers(args).items()},
        "format": args.format,
        "n-best": args.n_best,
        **result_conditions(args),
        "long-lines": generation.translator.long_lines,
        **{name: _digest(lines) for name, lines in generation.steering.conditions.items()},
        **{name: _digest(lines) for name, lines in generation.languages.conditions.items()},
        **{
            name.replace("_", "-"): value
            for name, value in generation.settings.model_dump(exclude=set(BATCH_SIZE)).items()
        },
    }


def _facts(
    generation: _Generation, count: int, before: int, seconds: float, world_size: int
) -> dict[str, Any]:
    """Return what `--results` stores of an evaluation besides the scores."""
    args, device = generation.args, generation.translator.device
    now = count - before
    return {
        "models": [str(run.source) for run in generation.runs],
        "reference": args.reference or "data.raw.test",
        "n_obs": count,
        "n_resumed": before,
        "seconds_per_sample": seconds / now if now else None,
        "ranks": world_size,
        "device": device.type,
        "dtype": args.dtype or default_dtype(generation.card, device),
        "generation": generation.settings.model_dump(mode="json"),
    }


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _report(
    args: argparse.Namespace,
    count: int,
    before: int,
    lines: Sequence[Line],
    seconds: float,
    world_size: int,
) -> None:
    """Print to stderr the speed, and warnings about sentences not translated completely."""
    now = count - before
    print(
        f"translated {now:,} sentences in {seconds:.1f} s "
        f"({now / max(seconds, 1e-9):,.1f} sentences/s, {world_size} process(es))"
        + (f"; {before:,} were done before" if before else ""),
        file=sys.stderr,
    )
    outcome = "left out" if args.long_lines == "skip" else "cut"
    warn_of_lines(
        f"sentence(s) longer than the model can take were {outcome}",
        [line.number + 1 for line in lines if line.cut],
    )
    warn_of_lines(
        "sentence(s) have no translation that all options allow; they are empty",
        [line.number + 1 for line in lines if line.impossible],
    )


def _report_untagged(generation: _Generation, lines: Sequence[int]) -> None:
    """Warn about lines, counted from 0, without a known language tag."""
    tags = generation.translator.tags or {}
    warn_of_lines(untagged_message(tags), [line + 1 for line in lines])


def _finish(
    args: argparse.Namespace, lines: list[Line], text: _Text, scorer: TextScorer | None
) -> list[CorpusScore]:
    """Write the output; print samples and scores, to stderr if stdout is the output.

    Returns:
        The scores, if there is a reference.
    """
    write_lines(args.output, [line.output for line in lines])
    stream = sys.stderr if args.output == STANDARD else sys.stdout
    translations = [line.best for line in lines]
    reference = text.reference
    if args.samples > 0:
        print(format_samples(text.source, translations, reference, args.samples), file=stream)
    if scorer is None or reference is None:
        return []
    scores = scorer(translations, reference)
    for result in scores:
        print(result, file=stream)
    return scores
