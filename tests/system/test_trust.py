"""Code from outside ds_seq in the files of others: named, and not run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import ds_seq
from ds_seq import cli
from ds_seq.config.base import PLUGIN
from ds_seq.config.load import load_experiment
from ds_seq.config.outside import TOKENIZING, TRAINING, outside_names
from ds_seq.config.schema import sections
from ds_seq.errors import UserError
from tests.compat.made import ARTEFACTS
from tests.system.commands import run
from tests.system.forked import train

EVIL = "evil_lab:Best"
ROUTER = "evil_lab.sub:Router"
TEXT = str(ARTEFACTS / "text" / "test.en")
DATA = str(ARTEFACTS / "data")

PLACES = {
    "model.name": f"model: {{name: '{EVIL}'}}",
    "model.moe.router.name": f"model: {{moe: {{router: '{EVIL}'}}}}",
    "data.vocab.name": f"data: {{vocab: {{name: '{EVIL}'}}}}",
    "data.source.name": f"data: {{source: {{name: '{EVIL}'}}}}",
    "task.name": f"task: {{name: '{EVIL}'}}",
    "criterion.name": f"criterion: {{name: '{EVIL}', options: {{command: 'touch ran'}}}}",
    "criterion.base.name": f"criterion: {{name: model_and_base, base: {{name: '{EVIL}'}}}}",
    "optimizer.name": f"optimizer: {{name: '{EVIL}', options: {{lr: 1}}}}",
    "scheduler.name": f"scheduler: {{name: '{EVIL}'}}",
    "validation.metrics[1]": f"validation: {{metrics: [chrf, '{EVIL}'], best: chrf}}",
}
COMMANDS = {
    "generate": ("RUN", "--input", TEXT),
    "interactive": ("RUN",),
    "rescore": ("RUN", "--source", TEXT, "--hypotheses", TEXT),
    "export": ("RUN", "--out", "OUT"),
    "average": ("RUN", "--last", "1", "--out", "OUT"),
    "moe-stats": ("RUN", "--data", DATA, "--split", "valid"),
    "shortlist": ("RUN", "--data", DATA, "--out", "OUT"),
    "make-student": ("RUN", "--out", "OUT", "--encoder-layers", "1"),
    "prune-experts": ("RUN", "--keep", "1", "--calibration", TEXT, "--out", "OUT"),
    "prune-heads": ("RUN", "--keep", "1", "--calibration", TEXT, "--out", "OUT"),
    "pseudo-label": ("RUN", "--data", DATA, "--out", "OUT"),
    "teacher-cache": ("RUN", "--data", DATA, "--top-k", "2", "--out", "OUT"),
}


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on Python's path; importing its package leaves a file `ran` in it."""
    package = tmp_path / "lab" / "evil_lab"
    package.mkdir(parents=True)
    code = f"import pathlib; pathlib.Path({str(tmp_path / 'lab' / 'ran')!r}).touch()\nBest = dict\n"
    for name in ("__init__.py", "sub.py"):
        (package / name).write_text(code)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "evil_lab", raising=False)
    return package.parent


def made_evil(folder: Path) -> Path:
    """A run of someone else, whose model and router come from outside."""
    run = Path(shutil.copytree(ARTEFACTS / "runs" / "moe", folder / "run"))
    config = run / "config.yaml"
    text = config.read_text().replace("name: transformer", f"name: {EVIL}")
    config.write_text(text.replace("router: softmax", f"router: '{ROUTER}'"))
    assert EVIL in config.read_text() and ROUTER in config.read_text()
    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_the_code_of_a_model(
    command: str, evil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RUN": str(made_evil(tmp_path)), "OUT": str(tmp_path / "out")}
    words = [places.get(word, word) for word in COMMANDS[command]]
    assert cli.main([command, *words]) == 2
    model, router = capsys.readouterr().err.splitlines()
    assert f"config.yaml:35: model.name: '{EVIL}' is code from outside ds_seq" in model
    assert str(evil / "evil_lab" / "__init__.py") in model and f"--trust {EVIL}" in model
    assert str(evil / "evil_lab" / "sub.py") in router and f"--trust {ROUTER}" in router
    assert not (evil / "ran").exists() and not (tmp_path / "out").exists()
    assert cli.main([command, *words, "--trust", EVIL]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ROUTER in line and not (evil / "ran").exists(), "each name needs its own permission"


def test_the_library_asks_as_well(evil: Path, tmp_path: Path) -> None:
    folder = made_evil(tmp_path)
    with pytest.raises(UserError, match=f"'{EVIL}' is code from outside"):
        ds_seq.load(folder)
    with pytest.raises(UserError, match=f"'{ROUTER}' is code from outside"):
        ds_seq.load(folder, trust=[EVIL])
    assert not (evil / "ran").exists()
    with pytest.raises(TypeError):  # the model is built, by a class that takes other arguments
        ds_seq.load(folder, trust=[EVIL, ROUTER])
    assert (evil / "ran").exists()
    data = {"source_lang": "en", "target_lang": "de", "dir": "d", "vocab": {"name": EVIL}}
    experiment = {"name": "x", "data": data, "validation": {"metrics": [], "best": "loss"}}
    with pytest.raises(UserError, match=r"experiment: data\.vocab\.name: 'evil_lab:Best' is code"):
        ds_seq.prepare(experiment)
    with pytest.raises(UserError, match=r"data\.raw\.train: missing"):
        ds_seq.prepare(experiment, trust=[EVIL])


@pytest.mark.parametrize("place", PLACES)
def test_an_experiment_may_name_it_and_not_run_it(place: str, tmp_path: Path) -> None:
    parent, path = tmp_path / "parent.yaml", tmp_path / "x.yaml"
    valid = "raw: {valid: {source: a, target: b}}"
    parent.write_text(f"name: x\ndata: {{source_lang: en, target_lang: de, dir: d, {valid}}}\n")
    path.write_text(f"extends: parent.yaml\n{PLACES[place]}\n")
    config = load_experiment(path)
    assert [name for _, name in outside_names(config)] == [EVIL]
    with pytest.raises(UserError) as caught:
        load_experiment(path, ["train.seed=3"], TRAINING)
    assert str(caught.value).startswith(f"{path}:2: {place}: '{EVIL}' is code from outside ds_seq")
    if place == "data.vocab.name":
        with pytest.raises(UserError, match="is code from outside"):
            load_experiment(path, (), TOKENIZING)
    else:
        load_experiment(path, (), TOKENIZING)


@pytest.mark.parametrize(
    "override", [f"criterion.name={EVIL}", f"criterion={{name: '{EVIL}', options: {{gamma: 2}}}}"]
)
def test_what_the_user_has_typed_is_the_users_wish(tmp_path: Path, override: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: x\ndata: {source_lang: en, target_lang: de, dir: d}\n"
        "train: {validate_every: null, save_every: 9}\n"
    )
    assert load_experiment(path, [override], TRAINING).criterion.name == EVIL
    path.write_text(path.read_text() + "optimizer: {name: 'evil_lab:Other', options: {lr: 1}}\n")
    with pytest.raises(UserError, match=r"optimizer\.name: 'evil_lab:Other' is code") as caught:
        load_experiment(path, [override], TRAINING)
    assert EVIL not in str(caught.value)
    path.write_text(path.read_text().replace("evil_lab:Other", "os:system"))
    with pytest.raises(UserError, match="os:system"):  # options alone are no permission
        load_experiment(path, ["optimizer.options={lr: 1, command: x}"], TRAINING)


@pytest.mark.parametrize(
    ("content", "override"),
    [
        ("criterion: {<<: {name: 'os:system'}}", "criterion.options={command: x}"),
        ("criterion: {name: 'os:system'}", "criterion.options.command=x"),
        ("model: {moe: {router: 'os:system'}}", "model.moe.num_experts=4"),
        ("criterion: {name: 'os:system'}", "criterion.name=cross_entropy"),
    ],
)
def test_options_are_no_permission_for_the_name(
    tmp_path: Path, content: str, override: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: x\ndata: {source_lang: en, target_lang: de, dir: d}\n"
        f"train: {{validate_every: null, save_every: 9}}\n{content}\n"
    )
    if "cross_entropy" in override:
        assert load_experiment(path, [override], TRAINING).criterion.name == "cross_entropy"
    else:
        with pytest.raises(UserError, match="'os:system' is code from outside"):
            load_experiment(path, [override], TRAINING)


def test_every_setting_that_takes_a_name_is_asked_about() -> None:
    """A new kind of plug-in marks its field, or its names would run unasked."""
    unmarked = [
        section.path_of(name)
        for section in sections()
        for name, field in section.config.model_fields.items()
        if "package.module:Name`" in str(field.description) and PLUGIN not in field.metadata
    ]
    assert unmarked == ["model.moe.router"], "a section of its own, whose name is marked"


def test_train_with_an_experiment_of_someone_else(tmp_path: Path, evil: Path) -> None:
    path = tmp_path / "x.yaml"
    data = f"{{source_lang: en, target_lang: de, dir: {DATA}}}"
    criterion = f"{{name: 'os:system', options: {{command: 'touch {evil}/ran'}}}}"
    path.write_text(
        f"name: x\nrun_dir: {tmp_path}/run\ndata: {data}\ncriterion: {criterion}\n"
        "validation: {metrics: [], best: loss}\n"
    )
    (refused,) = train(path)
    assert refused.code == 2 and f"{path}:4: criterion.name: 'os:system'" in refused.err
    assert not (evil / "ran").exists() and not (tmp_path / "run").exists()


def test_the_working_folder_is_not_searched_for_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("yaml", "argparse", "typing", "pathlib", "__future__", "ds_seq_evil"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('it has run')\n")
    monkeypatch.chdir(tmp_path)
    run([sys.executable, "-m", "ds_seq", "--help"], timeout=60).check()
