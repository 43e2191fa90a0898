"""Code of a user, which mypy checks strictly: no `Any` may hide what a function returns."""

from __future__ import annotations

from pathlib import Path

import ds_seq


def translated(run: Path, lines: list[str]) -> list[str]:
    model: ds_seq.TrainedModel = ds_seq.load(run, device="cpu", dtype="fp32")
    texts: list[str] = model.translate(lines)
    best: str = model.translate(lines[0], beam=4)
    listed: list[list[ds_seq.Translation]] = model.translate(lines, n_best=3)
    scores: list[ds_seq.TargetScore] = model.score(lines, texts)
    explanation: ds_seq.PairExplanation = model.explain(lines[0], best)
    figures: ds_seq.TextFigures = model.perplexity(lines)
    total = sum(score.log_prob for score in scores) + figures.nll
    return [listed[0][0].text, explanation.text, f"{total:.2f}"]


def trained(experiment: Path) -> float | None:
    config: ds_seq.ExperimentConfig = ds_seq.resolve(experiment, "train.max_updates=10")
    checked: ds_seq.Checked = ds_seq.check(config, world_size=2)
    print(*checked.notes, sep="\n")
    ds_seq.prepare(config)
    result: ds_seq.TrainingResult = ds_seq.fit(
        config, on_figures=lambda update, figures: print(update, figures["train/loss"])
    )
    return result.best_score


def compared(system: list[str], other: list[str], references: list[str]) -> list[str]:
    scores: list[ds_seq.CorpusScore] = ds_seq.score_translations(system, references)
    both = ds_seq.compare_systems({"base": system, "new": other}, references)
    return [f"{score.name} {score.value:.1f}" for score in (*scores, *both["new"])]


def kept(run: Path, out: Path) -> list[Path]:
    averaged: ds_seq.Averaged = ds_seq.average_models(run, out / "mean.safetensors", last=2)
    exported: Path = ds_seq.export(run, out / "hf", format="hf")
    learned: ds_seq.LearnedShortlist = ds_seq.learn_shortlist(run, out / "data", out / "list")
    found: list[ds_seq.Finding] = ds_seq.verify(averaged.path)
    return [exported, learned.path, *(each.path for each in found if not each.is_sound)]


def looked_at(folder: Path) -> None:
    states: list[ds_seq.RunState] = ds_seq.list_runs(folder)
    curves: list[ds_seq.RunCurves] = ds_seq.read_curves(folder)
    for state, curve in zip(states, curves, strict=True):
        updates, values = curve.curve("valid/bleu", "updates")
        print(state.name, state.best_score, max(values, default=None), updates)


def made_smaller(run: Path, out: Path, data: Path, text: Path) -> list[ds_seq.CorpusScore]:
    student: ds_seq.MadeStudent = ds_seq.make_student(run, out / "a", {"decoder": [0, 2]})
    dense = ds_seq.make_student(run, out / "b", merged_on=ds_seq.MeasuredPairs(data))
    loads: ds_seq.ExpertLoads = ds_seq.expert_loads(run, data, split="valid")
    print({layer.name: layer.load.max() for layer in loads.whole.layers}, dense.shares)
    texts = ds_seq.TextFiles(str(text))
    fewer: ds_seq.PrunedExperts = ds_seq.prune_experts(student.path, out / "c", "2", texts)
    heads: ds_seq.PrunedHeads = ds_seq.prune_heads(run, out / "d", 0.25, texts)
    return [fewer.before, heads.after]


def imported(folder: Path, out: Path) -> float | None:
    found: ds_seq.ImportedRun = ds_seq.import_huggingface(
        folder, out, languages=ds_seq.Languages("en", "de"), link=True
    )
    return found.difference


def served(run: Path) -> list[str]:
    server: ds_seq.ServerApp = ds_seq.build_server(f"best={run}", f"last={run}@last")
    names = list(server.service.models)
    server.close()
    return names


def shipped() -> dict[str, float]:
    recipes: list[ds_seq.Recipe] = ds_seq.list_recipes()
    return {recipe.name: recipe.hours for recipe in recipes}
