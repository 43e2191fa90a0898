"""A domain with words of its own: adapters or low-rank changes learn it next to the model."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.data.toy import write_toy
from tests.system.forked import command, generate, train
from tests.system.runs import Lab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OTHER_WORDS = {
    "findet": "entdeckt",
    "sieht": "erblickt",
    "Bücher": "Schriften",
    "Blumen": "Rosen",
    "alte": "betagte",
    "heute": "nunmehr",
}
"""German words of the domain, in place of those that the model has learned."""
UPDATES = 400
MORE_THAN = 15.0
"""Points of BLEU by which the domain must gain."""


@pytest.fixture(scope="module")
def domain(lab: Lab, dense_run: Path) -> Path:
    """Experiment whose text is of the domain, with the vocabulary of the model."""
    folder = lab.folder / "domain"
    write_toy(folder / "text", train=1000, held_out=100, seed=5)
    for path in (folder / "text").glob("*.de"):
        words = re.split(r"(\w+)", path.read_text(encoding="utf-8"))
        path.write_text("".join(OTHER_WORDS.get(word, word) for word in words), encoding="utf-8")
    raw = "".join(
        f"    {split}: {{source: {folder}/text/{split}.en, target: {folder}/text/{split}.de}}\n"
        for split in ("train", "valid", "test")
    )
    experiment = folder / "domain.yaml"
    experiment.write_text(
        f"extends: {lab.dense}\nname: domain\ndata:\n  dir: {folder}/data\n"
        f"  raw:\n{raw}"
        f"train: {{init_from: {dense_run}, max_updates: {UPDATES}, validate_every: {UPDATES}}}\n"
        "optimizer: {lr: 1e-2}\nscheduler: {name: constant, warmup_updates: 20}\n",
        encoding="utf-8",
    )
    (folder / "data").mkdir()
    shutil.copy(lab.folder / "data" / "vocab.model", folder / "data")
    command("prepare", experiment)[0].check()
    return experiment


def _bleu(model: Path, text: Path, out: Path, *options: str) -> tuple[float, str]:
    """BLEU of the test split of a folder, and the translations."""
    files = ("--input", text / "test.en", "--reference", text / "test.de", "--output", out)
    said = generate(model, *files, "--beam", "2", *options, timeout=300)[0].check().out
    found = re.search(r"BLEU\S*\s*=?\s*([\d.]+)", said)
    assert found is not None, said
    return float(found[1]), out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("model.adapters={ids: [domain], active: domain, reduction: 2}", "adapters"),
        ("model.lora={rank: 8, modules: [query, value, output, up, down]}", "lora"),
    ],
)
def test_a_domain_is_learned_beside_a_model(
    lab: Lab, dense_run: Path, domain: Path, tmp_path: Path, model: str, part: str
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    chosen = (f"train.trainable=[{part}]", f"train.allow_missing=[{part}]")
    train(domain, model, *chosen, f"run_dir={run}", timeout=500)[0].check()
    text = domain.parent / "text"
    before, _ = _bleu(dense_run, text, out)
    after, _ = _bleu(run, text, out)
    print(f"{part}: domain BLEU {before:.1f} before, {after:.1f} after")
    assert after > before + MORE_THAN
    if part == "adapters":
        own = lab.folder / "text"
        assert _bleu(run, own, out, "--adapter", "none") == _bleu(dense_run, own, out)
