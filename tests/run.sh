#!/usr/bin/env bash
# Sets up what the tests need and runs the whole default suite, in several workers side by side:
#
#   bash tests/run.sh                      everything but gpu and slow tests
#   bash tests/run.sh tests/unit -k beam   arguments go to pytest
#
# TEST_WORKERS (default: the number of cores, at most 8) is the number of workers; 1 runs plain
#   pytest in one process, as --pdb and -s need.
# TEST_TIME_LIMIT (seconds, default 1500) bounds the run, so that a hang ends as a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup.sh
. launch/setup.sh

# nproc would take these variables for the number of cores
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
# A worker per core: tests/conftest.py keeps each on its own, with all processes that it starts.
workers=${TEST_WORKERS:-$((cores < 8 ? cores : 8))}
[[ $workers =~ ^[1-9][0-9]*$ ]] || fail "TEST_WORKERS=$workers is not a positive whole number"

set_up test
# The tests start many processes, and without cached bytecode each compiles the package anew.
unset PYTHONDONTWRITEBYTECODE
options=()
if [ "$workers" -gt 1 ]; then
    # Tests of a file share fixtures, so they stay together. Files are handed out in the order of
    # their names, which has the long ones first and short unit tests to even out the end.
    options=(-n "$workers" --dist loadfile --no-loadscope-reorder)
fi
heading "Running the tests ($workers worker(s))"
# Killed 30 s after the limit, so that a process which ignores TERM cannot keep the run alive.
exec timeout --kill-after=30 "${TEST_TIME_LIMIT:-1500}" python -m pytest ${options[@]+"${options[@]}"} "$@"
