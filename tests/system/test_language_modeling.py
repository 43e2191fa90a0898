"""A language model: text of one side, training, resume on another layout, prompts, perplexity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_seq.cli import main
from ds_seq.data.shards import ShardReader
from tests.system.forked import train
from tests.system.runs import records

Capture = pytest.CaptureFixture[str]
_EXPERIMENT = """\
name: run
run_dir: {folder}/run
data:
  language: en
  dir: {folder}/data
  corpora: {{news: {{text: {folder}/news.txt}}, notes: {{text: {folder}/notes.txt}}}}
  raw: {{valid: {{text: {folder}/valid.txt}}}}
  vocab: {{size: 60, model_type: bpe}}
task: {{name: language_modeling, block_tokens: 12, context_window: 4}}
model:
  {{name: decoder_only, d_model: 16, ffn_dim: 32, num_heads: 2, decoder_layers: 2,
    max_positions: 24, dropout: 0.0,
    adaptive: {{cutoffs: [20, 40], factor: 2, tie_projections: true}},
    moe: {{num_experts: 2, capacity_factor: null}}}}
criterion: {{name: cross_entropy, label_smoothing: 0.0}}
optimizer: {{lr: 0.02}}
scheduler: {{warmup_updates: 1}}
train:
  {{max_tokens: 120, accumulate: 2, max_updates: 4, log_every: 1, validate_every: 2,
    save_every: 2, keep_last: 3, tensorboard: false}}
"""
_ZERO = Path(__file__).parents[2] / "configs" / "ds_config"
_WORDS = "server client library editor game music graphics network parser tools".split()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, its experiment, its shards and the run of two processes."""
    folder = tmp_path_factory.mktemp("language")
    for name, step in (("news", 3), ("notes", 7), ("valid", 9)):
        lines = [
            f"This {_WORDS[n * step % 10]} is a {_WORDS[n % 10]}." if n % 5 else ""
            for n in range(60)
        ]
        (folder / f"{name}.txt").write_text("\n".join([*lines, ""]))
    (folder / "x.yaml").write_text(_EXPERIMENT.format(folder=folder))
    assert main(["prepare", str(folder / "x.yaml")]) == 0
    for done in train(folder / "x.yaml", "train.accumulate=1", ranks=2):
        done.check()
    return folder


def test_text_of_one_side_is_prepared_once(lab: Path, capsys: Capture) -> None:
    reader = ShardReader(lab / "data", "train")
    assert reader.lengths.shape == (120, 1)
    assert [corpus.name for corpus in reader.corpora] == ["news", "notes"]
    assert (reader.lengths == 1).sum() == 24, "empty lines, which end documents"
    files = {path.name for path in (lab / "data").iterdir()}
    assert "train.0000.txt.bin" in files and not any(".src." in name for name in files)
    assert main(["prepare", str(lab / "x.yaml")]) == 0
    out = capsys.readouterr().out
    assert out.count("up to date") == 5
    assert main(["verify-data", str(lab / "data")]) == 0
    assert main(["show-batch", str(lab / "x.yaml"), "--count", "1"]) == 0
    assert "news, block " in capsys.readouterr().out


def test_another_layout_resumes_with_the_same_batches(lab: Path) -> None:
    whole = records(lab / "run", "train")
    (first,) = train(lab / "x.yaml", f"run_dir={lab}/again", "train.max_updates=2")
    first.check()
    layout = (f"run_dir={lab}/again", "train.accumulate=1", "--resume")
    for done in train(lab / "x.yaml", *layout, ranks=2):
        done.check()
    assert whole[-1]["loss"] < whole[0]["loss"] - 0.2, "or equal losses say nothing of its updates"
    again = records(lab / "again", "train")
    assert [line["update"] for line in again] == [1, 2, 3, 4]
    for one, other in zip(whole, again, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-5)
    valid = records(lab / "run", "valid")
    assert [line["best_by"] for line in valid] == ["perplexity"] * 2
    assert valid[-1]["perplexity_signature"] == "block 12|context 4"


def test_prompts_are_continued_and_text_is_measured(lab: Path, capsys: Capture) -> None:
    prompts = lab / "prompts.txt"
    prompts.write_text("This game is\nThis\n")
    options = ["--max-len-b", "4", "--sampling", "true", "--seed", "3"]
    assert main(["generate", str(lab / "run"), "--input", str(prompts), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("This game is") and lines[1].startswith("This")
    command = ["perplexity", str(lab / "run"), "--input", str(lab / "valid.txt"), "--json"]
    assert main([*command, "--context-window", "4"]) == 0
    measured = json.loads(capsys.readouterr().out)
    expected = records(lab / "run", "valid")[-1]["perplexity"]
    assert measured["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert measured["word_perplexity"] > measured["perplexity"]
    assert main([*command, "--stride", "8"]) == 0
    assert json.loads(capsys.readouterr().out)["nll"] == measured["nll"]


_RECURRENT = "decoder_embedding_dim: 16, decoder_hidden_dim: 16, output_dim: 16, decoder_layers: 2"
_GATED = "embedding_dim: 16, decoder_convolutions: [[16, 3], [8, 1, 0], [16, 2, 2]]"
_BYTES = (
    "d_model: 16, ffn_dim: 32, num_heads: 2, decoder_layers: 1, share_embeddings: none, "
    "character_embeddings: {filters: [[1, 8], [3, 8]]}"
)
_BANDS = "share_embeddings: none, adaptive: {cutoffs: [20, 40], input: false}"


@pytest.mark.parametrize(
    "section",
    [
        f"name: recurrent_lm, {_RECURRENT}",
        pytest.param(f"name: recurrent_lm, {_RECURRENT}, {_BANDS}", marks=pytest.mark.slow),
        pytest.param(f"name: convolutional_lm, {_GATED}, {_BANDS}", marks=pytest.mark.slow),
        pytest.param(f"name: convolutional_lm, {_GATED}", marks=pytest.mark.slow),
        pytest.param(f"name: decoder_only, {_BYTES}", marks=pytest.mark.slow),
    ],
)
def test_other_layers_resume_on_another_layout_and_continue_prompts(
    section: str, lab: Path, tmp_path: Path, capsys: Capture
) -> None:
    text = (lab / "x.yaml").read_text()
    start, end = text.index("model:"), text.index("criterion:")
    section = f"{{{section}, dropout: 0.0}}"
    text = f"{text[:start]}model: {section}\n{text[end:]}".replace("lr: 0.02", "lr: 0.05")
    (tmp_path / "other.yaml").write_text(text)
    zero2, zero3 = (f"train.deepspeed={_ZERO}/zero{stage}.json" for stage in (2, 3))
    run, again = (f"run_dir={tmp_path}/{name}" for name in ("other", "other_again"))
    for done in train(tmp_path / "other.yaml", run, zero2, "train.accumulate=1", ranks=2):
        done.check()
    train(tmp_path / "other.yaml", again, zero3, "train.max_updates=2")[0].check()
    for done in train(
        tmp_path / "other.yaml", again, zero3, "train.accumulate=1", "--resume", ranks=2
    ):
        done.check()
    (refused,) = train(
        tmp_path / "other.yaml", f"run_dir={tmp_path}/refused", f"train.init_from={lab}/run"
    )
    wrong = "has no tensor" if "decoder_only" in section else "is a model of name decoder_only"
    assert refused.code == 2 and wrong in refused.err
    lines = records(tmp_path / "other", "train")
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.05
    for one, other in zip(lines, records(tmp_path / "other_again", "train"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-5)
    (tmp_path / "two.txt").write_text("This game is\nThis\n")
    beam = ["--input", str(tmp_path / "two.txt"), "--beam", "3", "--max-len-b", "4"]
    assert main(["generate", str(tmp_path / "other"), *beam]) == 0
    assert capsys.readouterr().out.startswith("This game is")
    command = ["perplexity", str(tmp_path / "other"), "--input", str(lab / "valid.txt"), "--json"]
    assert main([*command, "--context-window", "4"]) == 0
    measured = json.loads(capsys.readouterr().out)["perplexity"]
    assert measured == pytest.approx(
        records(tmp_path / "other", "valid")[-1]["perplexity"], rel=1e-4
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (['criterion={"name": "minimum_risk"}'], "criterion.name: minimum_risk needs the sources"),
        (
            ['criterion={"name": "distillation", "teacher": "run", "hidden": {}}'],
            "criterion.hidden: compares layers of encoder-decoders",
        ),
        (
            ['data.corpora.news={"text": "news.txt", "back_translate": {}}'],
            "data.corpora.news.back_translate: is a matter of pairs",
        ),
    ],
)
def test_what_needs_pairs_is_refused(
    lab: Path, capsys: Capture, changes: list[str], message: str
) -> None:
    assert main(["check", str(lab / "x.yaml"), "model.adaptive=null", *changes]) == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("ds-seq: error:")]
    assert message in line


def test_a_student_has_some_of_the_layers_and_learns(lab: Path, capsys: Capture) -> None:
    command = ["make-student", str(lab / "run"), "--out", str(lab / "student")]
    assert main([*command, "--encoder-layers", "1"]) == 2
    assert "a model decoder_only has no encoder" in capsys.readouterr().err
    assert main([*command, "--decoder-layers", "1"]) == 0
    layout = (f"run_dir={lab}/tuned", "train.max_updates=1")
    (done,) = train(lab / "student" / "config.yaml", *layout)
    done.check()
    (line,) = records(lab / "tuned", "train")
    assert line["loss"] > 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["generate", "RUN", "--input", "LONG"], "LONG: line 1: has "),
        (["generate", "RUN"], "--input: missing: run is a language model"),
        (["perplexity", "RUN", "--input", "VALID", "--block-tokens", "25"], "takes 24 tokens"),
        (["perplexity", "RUN", "--input", "VALID", "--context-window", "12"], "leaves no token"),
        (["perplexity", "RUN", "--input", "ONE"], "has only 1 token"),
        (["export", "RUN", "--out", "OUT", "--format", "ctranslate2"], "has no 'decoder_only'"),
        (["export", "RUN", "--out", "OUT", "--format", "hf"], "writes no model 'decoder_only'"),
        (["rescore", "RUN", "--source", "VALID", "--hypotheses", "VALID"], "is a language model"),
    ],
)
def test_mistakes_get_one_line(
    lab: Path, capsys: Capture, command: list[str], message: str
) -> None:
    (lab / "long.txt").write_text("This game is a game. " * 20)
    (lab / "one.txt").write_text("\n")
    places = {
        "RUN": "run",
        "VALID": "valid.txt",
        "LONG": "long.txt",
        "ONE": "one.txt",
        "OUT": "out",
    }
    words = [str(lab / places[word]) if word in places else word for word in command]
    assert main(words) == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("ds-seq: error:")]
    assert message.removeprefix("LONG: ") in line


_LAYOUTS = {
    "ZeRO 2": ["train.deepspeed=configs/ds_config/zero2.json"],
    "ZeRO 3": ["train.deepspeed=configs/ds_config/zero3.json"],
    "expert parallelism": ["train.expert_parallel=2"],
    "bf16": ["train.precision=bf16"],
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", _LAYOUTS)
def test_layouts_learn_the_same(lab: Path, layout: str) -> None:
    run = lab / layout.replace(" ", "-")
    changes = [*_LAYOUTS[layout], "train.accumulate=1", f"run_dir={run}"]
    for done in train(lab / "x.yaml", *changes, ranks=2):
        done.check()
    expected, found = ([line["loss"] for line in records(r, "valid")] for r in (lab / "run", run))
    tolerance = 2e-2 if layout == "bf16" else 2e-4
    assert len(expected) == 2 and found == pytest.approx(expected, abs=tolerance)


@pytest.mark.slow
def test_a_dense_model_is_upcycled_taught_and_averaged(lab: Path, capsys: Capture) -> None:
    dense, sparse = f"run_dir={lab}/small", f"run_dir={lab}/upcycled"
    for done in train(lab / "x.yaml", dense, "model.moe=null", "model.adaptive=null", ranks=2):
        done.check()
    teacher = 'criterion={"name": "distillation", "teacher": "' + str(lab / "small") + '"}'
    start = (
        f"train.init_from={lab}/small",
        "train.expert_parallel=2",
        "model.adaptive=null",
        teacher,
    )
    for done in train(lab / "x.yaml", sparse, *start, ranks=2):
        done.check()
    lines = records(lab / "upcycled", "train")
    assert len(lines) == 4 and all(line["kd"] > 0 for line in lines)
    out = lab / "average.safetensors"
    assert main(["average", str(lab / "upcycled"), "--last", "2", "--out", str(out)]) == 0
    capsys.readouterr()
    found = []
    for run in (out, lab / "upcycled"):
        assert main(["perplexity", str(run), "--input", str(lab / "valid.txt"), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["perplexity"])
    assert found[0] != found[1] and found[0] == pytest.approx(found[1], rel=0.2)
