"""Run folders, exported folders and exported files, whole and damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ds_seq.commands.export import main
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.runs.export import export
from ds_seq.runs.formats.ds_seq import CONFIG_KEY, VOCAB_KEY, find_checkpoint
from ds_seq.runs.open import DTYPES, load_run, open_run
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.weights.fill import fill
from tests.data.vocabulary import train_vocab
from tests.unit.runs.made import experiment, write_run


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, vocab: SentencePieceTokenizer) -> Path:
    """A run folder with two checkpoints of a small model with experts; not to be written to."""
    config = experiment({"moe": {"num_experts": 4}})
    models = {n: build_model(config.model, len(vocab), 1, 0, seed=n) for n in (10, 20)}
    return write_run(tmp_path_factory.mktemp("made") / "run", config, vocab, models)


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.mark.parametrize(
    ("which", "update"),
    [("best", 10), ("last", 20), ("update_00000010", 10), ("update_00000020", 20)],
)
def test_checkpoints_by_name(original: Path, which: str, update: int) -> None:
    loaded = load_run(original, which)
    assert loaded.source == original / "checkpoints" / f"update_{update:08d}"
    expected = build_model(loaded.model_config, loaded.tokenizers.size, 1, 0, seed=update)
    for name, value in loaded.model.named_parameters():
        assert torch.equal(value, expected.get_parameter(name)), name
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_checkpoint_by_its_path(original: Path) -> None:
    path = original / "checkpoints" / "update_00000010"
    assert find_checkpoint(original, str(path)) == path


def test_without_validations_the_best_is_the_last(run: Path) -> None:
    index = run / "checkpoints" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "best": []}))
    assert find_checkpoint(run, "best").name == "update_00000020"


def test_an_unknown_checkpoint_lists_the_known_ones(original: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint 'update_7'; .* best, last, update_00000010"):
        find_checkpoint(original, "update_7")


@pytest.mark.parametrize("content", [None, '{"last": [], "best": []}'])
def test_a_run_without_a_finished_checkpoint(run: Path, content: str | None) -> None:
    index = run / "checkpoints" / "index.json"
    index.unlink()
    if content is not None:
        index.write_text(content)
    with pytest.raises(UserError, match=f"{run}: has no finished checkpoint"):
        load_run(run, "best")


@pytest.mark.parametrize("content", ["", "[]", '{"best": []}', '{"last": [{}], "best": []}'])
def test_a_damaged_index_is_named(run: Path, content: str) -> None:
    (run / "checkpoints" / "index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json: is damaged \(.*\); name the checkpoints"):
        load_run(run, "best")


@pytest.mark.parametrize("name", ["config.yaml", "vocab.model"])
def test_a_folder_that_is_no_run(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(UserError, match=f"not a run folder \\({name} is missing\\)"):
        load_run(run, "best")
    with pytest.raises(UserError, match="no such run folder"):
        load_run(run / "nowhere", "best")


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0.0), ("bf16", 0.02)])
def test_an_exported_folder_holds_the_same_model(
    original: Path, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    out = tmp_path / "out"
    file = export(original, out, "last", dtype)
    assert sorted(path.name for path in out.iterdir()) == [
        "config.yaml",
        "model.safetensors",
        "vocab.model",
    ]
    ours, theirs = load_run(out, "best"), load_run(original, "last")
    assert ours.source == file and ours.tokenizers.fingerprint == theirs.tokenizers.fingerprint
    for name, value in theirs.model.named_parameters():
        torch.testing.assert_close(
            ours.model.get_parameter(name), value, rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0.0), ("bf16", 0.02), ("fp16", 1e-3)])
def test_an_exported_file_alone_holds_the_same_model(
    original: Path, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    file = tmp_path / "alone" / "small.v1.safetensors"
    assert export(original, file, "last", dtype) == file
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    ours, theirs = load_run(file, "best"), load_run(original, "last")
    assert ours.source == file
    assert (
        ours.experiment == theirs.experiment
        and ours.tokenizers.fingerprint == theirs.tokenizers.fingerprint
    )
    for name, value in theirs.model.named_parameters():
        torch.testing.assert_close(
            ours.model.get_parameter(name), value, rtol=tolerance, atol=tolerance
        )
    with safe_open(str(file), framework="pt") as stored:
        experts = stored.get_slice("encoder.layers.1.feed_forward.experts.w1")
        assert experts.get_shape()[0] == 4
        kinds = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
        assert experts.get_dtype() == kinds[dtype]


def test_an_export_can_be_exported_again(original: Path, tmp_path: Path) -> None:
    file = export(original, tmp_path / "one.safetensors", "best")
    folder = export(file, tmp_path / "folder", "best").parent
    again = export(folder, tmp_path / "two.safetensors", "best")
    one, two = open_run(file, "best"), open_run(again, "best")
    assert (
        one.experiment == two.experiment
        and one.tokenizers.fingerprint == two.tokenizers.fingerprint
    )
    assert one.weights.keys() == two.weights.keys()
    assert all(torch.equal(one.weights.read(k), two.weights.read(k)) for k in one.weights.keys())


def test_a_rank_reads_its_own_experts_of_an_exported_file(original: Path, tmp_path: Path) -> None:
    stored = open_run(export(original, tmp_path / "one.safetensors", "best"), "best")
    whole = load_run(original, "best").model
    for part in (0, 1):
        model = build_model(stored.model_config, stored.tokenizers.size, 2, part, seed=1)
        fill(model, stored.weights)
        ours = model.get_parameter("decoder.layers.1.feed_forward.experts.w2")
        theirs = whole.get_parameter("decoder.layers.1.feed_forward.experts.w2")
        assert torch.equal(ours, theirs[2 * part : 2 * part + 2])


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_an_export_overwrites_nothing(original: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    out.write_text("what was there")
    with pytest.raises(UserError, match="exists already"):
        export(original, out, "best")
    assert out.read_text() == "what was there"


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_a_failed_export_leaves_nothing(
    original: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export(original, tmp_path / "file" / name, "best")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def full_disk(tensors: object, path: str, metadata: object) -> None:
        Path(path).write_text("a part")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("ds_seq.weights.source.save_file", full_disk)
    with pytest.raises(
        UserError, match=f"{name}: cannot be written: No space left on device; is the disk full"
    ):
        export(original, tmp_path / name, "best")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_export_is_no_export_and_is_replaced(original: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.safetensors.99999.tmp"
    left.write_text("killed here")
    export(original, tmp_path / "out.safetensors", "best")
    assert not left.exists()


@pytest.mark.parametrize(("name", "file"), [("a", "a/model.safetensors"), ("b.safetensors",) * 2])
def test_the_command_says_where_the_file_is(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, file: str
) -> None:
    assert main([str(original), "--out", str(tmp_path / name)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / file}: ")


@pytest.mark.parametrize("which", ["best", "last", "update_00000020"])
def test_a_run_with_an_export_inside_still_has_its_checkpoints(run: Path, which: str) -> None:
    export(run, run / "model.safetensors", "best" if which == "last" else "last")
    stored = open_run(run, which)
    assert stored.weights.path == find_checkpoint(run, which)
    shutil.rmtree(run / "checkpoints")
    if which == "update_00000020":
        with pytest.raises(UserError, match="is an export, .* no checkpoint 'update_00000020'"):
            open_run(run, which)
    else:
        assert open_run(run, which).weights.path == run / "model.safetensors"


def test_the_vocabulary_of_the_training_is_wanted(run: Path, text: Path, tmp_path: Path) -> None:
    exported = tmp_path / "exported"
    export(run, exported, "best")
    note = run / "checkpoints" / "update_00000010" / "checkpoint.json"
    old = SentencePieceTokenizer.load(run / "vocab.model")
    note.write_text(
        json.dumps({**json.loads(note.read_text()), "ds_seq.vocab_hash": old.fingerprint})
    )
    assert (
        open_run(run, "best").tokenizers.fingerprint
        == open_run(exported, "best").tokenizers.fingerprint
        == old.fingerprint
    )
    for folder in (run, exported):  # another one, as large
        train_vocab([text / "train.en", *[text / "train.de"] * 2], folder / "vocab.model", len(old))
        with pytest.raises(UserError, match="restore that vocabulary") as refused:
            open_run(folder, "best")
        assert str(refused.value).startswith(f"{folder / 'vocab.model'}: is vocabulary ")
    assert open_run(run, "last").tokenizers.size == len(old)  # an older checkpoint does not say


def test_an_exported_file_has_one_state(original: Path, tmp_path: Path) -> None:
    file = export(original, tmp_path / "one.safetensors", "best")
    assert open_run(file, "last").weights.path == open_run(file, "best").weights.path == file
    with pytest.raises(UserError, match=f"{file}: is an export, .* no checkpoint 'update_7'"):
        open_run(file, "update_7")


@pytest.mark.parametrize(("counts", "uneven", "ranks"), [(4, 4, 3), ([4, 6], 6, 4)])
def test_experts_that_cannot_be_spread_are_refused_before_the_model_is_built(
    tmp_path: Path,
    vocab: SentencePieceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    counts: int | list[int],
    uneven: int,
    ranks: int,
) -> None:
    config = experiment({"moe": {"num_experts": counts}})
    folder = write_run(
        tmp_path / "run", config, vocab, {1: build_model(config.model, len(vocab), 1, 0, seed=1)}
    )
    monkeypatch.setattr("ds_seq.runs.open.build_model", None)
    with pytest.raises(UserError, match=f"{uneven} experts .* spread over {ranks} ranks"):
        load_run(folder, "best", expert_parallel=ranks)


def test_damaged_exports(original: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = export(original, out, "best")
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load_run(out, "best")
    save_file({"other": torch.zeros(1)}, str(file))
    with pytest.raises(UserError, match="has no tensor .* another model"):
        load_run(out, "best")
    file.write_bytes(content)
    config = out / "config.yaml"
    config.write_text(config.read_text().replace("ffn_dim: 24", "ffn_dim: 32"))
    with pytest.raises(UserError, match="has shape .* the model expects"):
        load_run(out, "best")


def test_files_that_are_no_export(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with pytest.raises(UserError, match="contains no experiment and vocabulary; give the folder"):
        load_run(export(original, folder, "best"), "best")
    with pytest.raises(UserError, match="config.yaml: neither a run folder nor a file"):
        load_run(folder / "config.yaml", "best")
    file = export(original, tmp_path / "one.safetensors", "best")
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(UserError, match=r"one\.safetensors: damaged"):
        load_run(file, "best")

    with safe_open(
        str(export(original, tmp_path / "two.safetensors", "best")), framework="pt"
    ) as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        header = dict(stored.metadata())
    damages = [
        (CONFIG_KEY, header[CONFIG_KEY].replace("top_k: 1", "top_k: 9"), "model.moe.top_k"),
        (CONFIG_KEY, "model: [", "not valid YAML"),
        (VOCAB_KEY, header[VOCAB_KEY][:-3], "damaged"),
        (VOCAB_KEY, header[VOCAB_KEY][:400], "vocabulary: is not a SentencePiece model"),
    ]
    for key, value, message in damages:
        save_file(tensors, str(file), metadata={**header, key: value})
        with pytest.raises(UserError, match=message) as raised:
            load_run(file, "best")
        assert str(raised.value).startswith(str(file))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_counters_of_a_router_travel_unrounded(
    tmp_path: Path, vocab: SentencePieceTokenizer, dtype: str
) -> None:
    config = experiment({"moe": {"num_experts": 4, "router": "sigmoid"}})
    model = build_model(config.model, len(vocab), 1, 0, seed=1)
    steps = [2**40 + 1, -70_001, 0, 3]  # no float of 16 bits holds the first two
    name = "encoder.layers.1.feed_forward.gate.bias_steps"
    model.get_buffer(name).copy_(torch.tensor(steps))
    run = write_run(tmp_path / "run", config, vocab, {1: model})
    half = load_run(run, "best", dtype=DTYPES[dtype])
    files = [
        export(run, tmp_path / out, "best", dtype=dtype) for out in ("folder", "one.safetensors")
    ]
    sources = (files[0].parent, files[1])
    for loaded in (half, *(load_run(source, "best", dtype=DTYPES[dtype]) for source in sources)):
        buffer = loaded.model.get_buffer(name)
        assert buffer.dtype == torch.int64 and buffer.tolist() == steps
        assert next(loaded.model.parameters()).dtype == DTYPES[dtype]
