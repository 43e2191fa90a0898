"""Use in a notebook: prepare, fit, load and translate from Python, in a separate process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.system.commands import run
from tests.system.forked import generate
from tests.system.runs import NO_VALIDATION, TINY, Lab

_SCRIPT = """\
import json, os, subprocess, sys
import ds_seq
before = dict(os.environ)
folder, overrides = sys.argv[1], sys.argv[2:]
ds_seq.prepare(f"{folder}/dense.yaml")
first = ds_seq.fit(f"{folder}/dense.yaml", *overrides, "train.max_updates=2")
second = ds_seq.fit(f"{folder}/dense.yaml", *overrides, "train.max_updates=3", resume=True)
changed = sorted(
    name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name)
)
command = [sys.executable, "-m", "ds_seq", "train", f"{folder}/dense.yaml", *overrides]
other = subprocess.run([*command, "train.max_updates=4", "--resume"], capture_output=True)
try:
    ds_seq.fit({"name": "x", "data": {"dir": "d", "source_lang": "en"}})
except ds_seq.UserError as error:
    said = str(error)
model = ds_seq.load(second.folder, checkpoint="last")
json.dump({
    "ends": [(end.reason, end.update, end.best_score, end.best_by) for end in (first, second)],
    "folder": str(second.folder),
    "said": said,
    "changed": changed,
    "other": (other.returncode, other.stderr.decode()),
    "text": model.translate(["the man sees two books today"]),
}, open(f"{folder}/library.json", "w"))
"""


def test_prepare_fit_and_translate(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    overrides = [*TINY, *NO_VALIDATION, f"run_dir={folder}"]
    script = [sys.executable, "-c", _SCRIPT, lab.folder, *overrides]
    done = run(script, timeout=120).check()
    assert "stopped at" not in done.out + done.err  # that is the command's report
    found = json.loads((lab.folder / "library.json").read_text())
    assert found["folder"] == str(folder)
    assert found["ends"] == [["max_updates", n, None, "bleu"] for n in (2, 3)]
    assert found["said"].splitlines()[0].startswith("experiment: data.target_lang: missing")
    assert not {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"} & {*found["changed"]}
    assert found["other"][0] == 0, found["other"][1]
    text = tmp_path / "text"
    text.write_text("the man sees two books today\n")
    arguments = ("--checkpoint", "last", "--input", text, "--device", "cpu")
    by_command = generate(folder, *arguments)[0].check()
    assert by_command.out.splitlines() == found["text"]
