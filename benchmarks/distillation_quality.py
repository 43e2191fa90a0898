"""distillation.py: a teacher, and the same student trained in five ways."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from common import Goal, Section, Spread, table
from curve_plot import load_matplotlib
from experiments import NEVER, Recipe, model_section, write_experiment
from turns import take_turns

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import load_experiment
from ds_seq.config.yaml_file import to_yaml
from ds_seq.errors import UserError
from ds_seq.generation.build import build_limits, build_search
from ds_seq.generation.translate import translate
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.runs.card import LoadedRun
from ds_seq.runs.formats.ds_seq import CONFIG_FILE, find_checkpoint
from ds_seq.runs.open import load_run
from ds_seq.scores.scoring import Scorer
from ds_seq.text.lines import read_parallel
from ds_seq.text.sentencepiece import SentencePieceTokenizer

TEACHER, SCRATCH = "teacher", "from scratch"
WORD_SEQ, GLOBAL = "word_seq_level", "global_level"
SEQUENCE, SHRUNK = "sequence level", "shrink and fine-tune"
STUDENTS = (SCRATCH, WORD_SEQ, GLOBAL, SEQUENCE, SHRUNK)
MOST_TOKENS = 32  # per sentence, as in the quick start
BEAM = 4
WINNERS_WANTED = 2
TOP_K = 8  # tokens per distribution in the teacher's cache
_ENCODER, _DECODER = 2, 1  # layers of the student
_ROUNDS = 3


@dataclass(frozen=True)
class Quality:
    """The models to train.

    Attributes:
        text: folder of the text, from `fetch_text`.
        folder: folder of all runs; finished runs in it are reused.
        teacher_updates: updates of the teacher.
        updates: updates of each student.
        seeds: seeds of each kind of student.
        jobs: students that train at the same time, one thread each.
        threads: threads of a process that runs alone.
    """

    text: Path
    folder: Path
    teacher_updates: int
    updates: int
    seeds: tuple[int, ...]
    jobs: int
    threads: int

    @property
    def teacher(self) -> Path:
        """The teacher's run folder."""
        return self.folder / TEACHER

    def student(self, kind: str, seed: int) -> Path:
        """A student's run folder."""
        return self.folder / f"{kind.replace(' ', '_')}.{seed}"


@dataclass(frozen=True)
class Result:
    """One trained model on the test set."""

    kind: str
    seed: int
    bleu: float
    chrf: float
    parameters: int
    speed: float
    """Sentences per second, median of the rounds; 0 if not measured."""


@dataclass(frozen=True)
class _Test:
    sources: list[str]
    references: list[str]
    total: int


def train_all(quality: Quality) -> list[Result]:
    """Train what is not trained yet and test all models; return the teacher first."""
    train_teacher(quality)
    make_cache(quality)
    labels, shrunk = quality.folder / "labels", quality.folder / "shrunk"
    if not (labels / "train.manifest.json").exists():
        search = ["--beam", str(BEAM), "--max-tokens", "4096"]
        shards = str(quality.folder / "shards")
        command = ["pseudo-label", str(quality.teacher), "--data", shards, "--out", str(labels)]
        run_ds_seq(command + search, quality.threads, quality.folder / "labels.log")
    if not shrunk.exists():
        layers = ["--encoder-layers", str(_ENCODER), "--decoder-layers", str(_DECODER)]
        command = ["make-student", str(quality.teacher), "--out", str(shrunk), *layers]
        run_ds_seq(command, quality.threads, quality.folder / "shrunk.log")
    experiments = [
        student_experiment(quality, kind, seed) for seed in quality.seeds for kind in STUDENTS
    ]
    with ThreadPoolExecutor(quality.jobs) as pool:
        for done in [pool.submit(_train, quality, e, 1) for e in experiments]:
            done.result()
    return _results(quality)


def train_teacher(quality: Quality) -> None:
    """Train the teacher unless it is finished."""
    _train(quality, teacher_experiment(quality), quality.threads)


def teacher_experiment(quality: Quality) -> dict[str, Any]:
    """4 + 4 layers of width 192."""
    train = {"validate_every": 500, "valid_bleu": True, "best_metric": "bleu"}
    train |= {"valid_max_sentences": 300, "save_every": None, "keep_last": 1}
    recipe = _recipe(quality, 4, quality.teacher_updates, train)
    return recipe.experiment(quality.teacher)


def student_experiment(quality: Quality, kind: str, seed: int) -> dict[str, Any]:
    """2 + 1 layers of the same width; the last checkpoint is used."""
    recipe = _recipe(quality, 1, quality.updates, {"seed": seed, "save_every": NEVER})
    if kind == SEQUENCE:
        recipe = replace(recipe, shards=quality.folder / "labels")
    experiment = recipe.experiment(quality.student(kind, seed))
    experiment["model"] |= {"encoder_layers": _ENCODER, "decoder_layers": _DECODER}
    if kind in (WORD_SEQ, GLOBAL):
        experiment["criterion"] = cached_section(quality) | {"strategy": kind}
    if kind == SHRUNK:
        experiment["train"]["init_from"] = str(quality.folder / "shrunk")
        experiment["optimizer"]["lr"] = 1e-3  # a third: the model need not be learned, only kept
    return experiment


def live_section(quality: Quality) -> dict[str, Any]:
    """Section `criterion` of a student with a live teacher."""
    return {"name": "distillation", "teacher": str(quality.teacher), "label_smoothing": 0.1}


def cached_section(quality: Quality) -> dict[str, Any]:
    """Section `criterion` of a student with a cache of the teacher."""
    cache = str(quality.folder / "cache")
    return {"name": "distillation", "cache": cache, "label_smoothing": 0.1}


def make_cache(quality: Quality) -> None:
    """Write the teacher's cache for all of the text unless it exists."""
    cache = quality.folder / "cache"
    if not (cache / "train.teacher.json").exists():
        shards = str(quality.folder / "shards")
        command = ["teacher-cache", str(quality.teacher), "--data", shards, "--out", str(cache)]
        command += ["--top-k", str(TOP_K), "--splits", "train"]
        run_ds_seq(command, quality.threads, quality.folder / "cache.log")


def _recipe(quality: Quality, layers: int, updates: int, train: dict[str, Any]) -> Recipe:
    section = {"max_tokens": 4000, "clip_norm": 1.0, "max_updates": updates, "log_every": 25}
    return Recipe(
        text=quality.text,
        shards=quality.folder / "shards",
        vocab_size=3500,
        model=model_section(layers, 192, 768, 0.2) | {"num_heads": 4},
        train=section | train,
        optimizer={"name": "adamw", "lr": 3e-3, "betas": [0.9, 0.98], "weight_decay": 1e-4},
        scheduler={"name": "cosine", "warmup_updates": updates // 10, "min_lr": 1e-5},
        splits=("train", "valid", "test"),
        data={
            "max_source_length": MOST_TOKENS,
            "max_target_length": MOST_TOKENS,
            "vocab": {"size": 3500, "model_type": "bpe"},
        },
        generation={"beam": BEAM},
    )


def _train(quality: Quality, experiment: dict[str, Any], threads: int) -> None:
    """Run `ds-seq train`, unless the run is finished.

    Raises:
        UserError: the folder holds a run of another experiment.
    """
    run = Path(experiment["run_dir"])
    path = quality.folder / f"{run.name}.yaml"
    if experiment["data"]["dir"] == str(quality.folder / "shards"):
        config = write_experiment(experiment, path)
    else:  # pseudo-labels are shards, not text to prepare
        config = ExperimentConfig.model_validate(experiment)
        path.write_text(to_yaml(experiment), encoding="utf-8")
    if (run / CONFIG_FILE).exists() and load_experiment(run / CONFIG_FILE, []) != config:
        raise UserError(f"{run}: is a run of another experiment; choose another --out")
    last = f"update_{config.train.max_updates:08d}"
    if (run / "checkpoints").exists() and find_checkpoint(run, "last").name == last:
        return
    run_ds_seq(["train", str(path), "--resume"], threads, quality.folder / f"{run.name}.log")


def run_ds_seq(arguments: Sequence[str], threads: int, log: Path) -> None:
    """Run a command with its output in a file.

    Raises:
        UserError: the command failed.
    """
    print(f"ds-seq {' '.join(Path(word).name for word in arguments)}", file=sys.stderr, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "ds_seq", *arguments]
        done = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False)
    if done.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-10:])
        raise UserError(f"ds-seq {arguments[0]} failed; the end of {log}:\n{tail}")


def _results(quality: Quality) -> list[Result]:
    """Test every run; speed is measured on the first seed, with all kinds in turns."""
    torch.set_num_threads(quality.threads)
    test = _short_test(quality)
    runs = {(TEACHER, 0): load_run(quality.teacher, "best")}
    for kind in STUDENTS:
        for seed in quality.seeds:
            runs[kind, seed] = load_run(quality.student(kind, seed), "last")
    first = {kind: (kind, 0 if kind == TEACHER else quality.seeds[0]) for kind, _ in runs}

    def call(run: LoadedRun) -> Any:
        return lambda: _translate(run, test.sources)

    rounds = take_turns({kind: call(runs[key]) for kind, key in first.items()}, _ROUNDS)
    results = []
    for key, run in runs.items():
        scores = Scorer("de")(_translate(run, test.sources), test.references)
        bleu, chrf = (next(s.value for s in scores if s.name == name) for name in ("bleu", "chrf"))
        seconds = rounds.seconds(key[0]) if first[key[0]] == key else []
        speed = len(test.sources) / statistics.median(seconds) if seconds else 0.0
        size = sum(parameter.numel() for parameter in run.model.parameters())
        results.append(Result(*key, bleu, chrf, size, speed))
        print(results[-1], file=sys.stderr, flush=True)
    return results


def _short_test(quality: Quality) -> _Test:
    """Return the pairs of the test set that are no longer than the training pairs."""
    vocab = SentencePieceTokenizer.load(quality.folder / "shards" / "vocab.model")
    raw = quality.text / "raw"
    pairs = list(zip(*read_parallel(str(raw / "test.en"), str(raw / "test.de")), strict=True))
    short = [p for p in pairs if all(len(vocab.encode(side)) < MOST_TOKENS for side in p)]
    return _Test([s for s, _ in short], [t for _, t in short], len(pairs))


def _translate(run: LoadedRun, sources: Sequence[str]) -> list[str]:
    positions = run.model_config.max_positions
    search = build_search(run.card.generation, run.tokenizers.symbols, positions)
    limits = build_limits(run.card.generation, positions)
    model = cast(Seq2SeqTransformer, run.model)
    done = translate(model, run.tokenizers, sources, search, limits, torch.device("cpu"))
    assert done is not None, "one process gets all translations"
    return done.lines


def quality_section(quality: Quality, results: Sequence[Result]) -> Section:
    """One row per kind, and whether the distilled students gain more than the seeds differ."""
    by_kind = {kind: [r for r in results if r.kind == kind] for kind in (TEACHER, *STUDENTS)}
    scratch = [result.bleu for result in by_kind[SCRATCH]]
    rows, winners = [], 0
    for kind, group in by_kind.items():
        bleu = [result.bleu for result in group]
        gain = statistics.mean(bleu) - statistics.mean(scratch)
        noise = max(max(values) - min(values) for values in (bleu, scratch))
        beyond = kind in STUDENTS[1:] and gain > noise
        winners += beyond
        rows.append(
            [
                kind,
                f"{group[0].parameters:,}",
                Spread.of(bleu).text(2),
                Spread.of([result.chrf for result in group]).text(2),
                f"{gain:+.2f}" if kind in STUDENTS[1:] else "",
                f"{noise:.2f}" if kind in STUDENTS[1:] else "",
                f"{group[0].speed:.0f}",
                f"{group[0].speed / by_kind[TEACHER][0].speed:.2f}",
            ]
        )
    header = ["model", "parameters", "BLEU", "chrF", "gain", "spread", "sentences/s", "to teacher"]
    test = _short_test(quality)
    remarks = (
        f"Test set: {len(test.sources)} of {test.total} pairs, those of at most {MOST_TOKENS} "
        f"subwords per side, beam {BEAM}; BLEU and chrF are sacreBLEU's, of detokenized text. "
        f"Teacher: 4 + 4 layers of width 192/768, {quality.teacher_updates:,} updates, its best by "
        f"validation BLEU. Students: {_ENCODER} + {_DECODER} layers of the same width, "
        f"{quality.updates:,} updates of at most 4,000 tokens, the last state; "
        f"{WORD_SEQ} and {GLOBAL} from a cache of the teacher's {TOP_K} best tokens; median (and "
        f"extremes) of seeds {', '.join(map(str, quality.seeds))}. *gain*: difference "
        f"of the means to {SCRATCH}; *spread*: largest less smallest BLEU over "
        f"the seeds, of this kind or of {SCRATCH}, whichever is larger. Speed: translation of the "
        f"test set, in turns, of the first seed, {quality.threads} threads."
    )
    goal = Goal(
        f"kinds of distilled students whose gain is more than the spread over "
        f"{len(quality.seeds)} seeds",
        winners,
        WINNERS_WANTED,
    )
    return Section("Teacher and students", f"{table(header, rows)}\n\n{remarks}", [goal])


def plot_quality(results: Sequence[Result], path: Path) -> None:
    """Plot BLEU by kind: a bar for the mean, a dot per seed, labeled with size and speed."""
    kinds = list(dict.fromkeys(result.kind for result in results))
    picture = load_matplotlib().Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = picture.subplots()
    for row, kind in enumerate(reversed(kinds)):
        group = [result for result in results if result.kind == kind]
        bleu = [result.bleu for result in group]
        color = {TEACHER: "#4c72b0", SCRATCH: "#8c8c8c"}.get(kind, "#dd8452")
        axes.barh(row, statistics.mean(bleu), color=color, alpha=0.75)
        axes.plot(bleu, [row - 0.22] * len(bleu), "k.", markersize=5)
        note = f"{group[0].parameters / 1e6:.1f}M, {group[0].speed:.0f} sentences/s"
        axes.text(0.2, row + 0.12, note, va="center", fontsize=8)
    axes.set_yticks(range(len(kinds)), list(reversed(kinds)))
    axes.set_xlabel("BLEU on the test set (bar: mean, dots: seeds)")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130)
