"""The arguments of `ds-seq generate`, and its file started as a script."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import ds_seq
from ds_seq.commands.arguments.generate import build_parser
from ds_seq.config.generation import GenerationConfig


def test_arguments_of_the_search_are_those_of_the_config() -> None:
    actions = {action.dest: action for action in build_parser()._actions}
    for name, field in GenerationConfig.model_fields.items():
        help = str(actions[name].help)
        assert help.startswith(f"{str(field.description).rstrip('.')} (")
        default = {"None": "null", "False": "false"}.get(str(field.default), field.default)
        assert help.endswith(f"default: {default})")
    assert actions["local_rank"].help == argparse.SUPPRESS


def test_as_a_script_the_package_folder_shadows_nothing(tmp_path: Path) -> None:
    """`deepspeed` and `torchrun` start the file itself; then its folder heads Python's path."""
    script = Path(ds_seq.__file__).with_name("generate.py")
    code = (
        "import runpy, sys; sys.argv = ['generate.py', '--help']\n"
        f"sys.path.insert(0, {str(script.parent)!r})\n"
        f"try: runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "except SystemExit: print(sys.path[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == str(script.parent.parent), done.stderr
