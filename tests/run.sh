#!/usr/bin/env bash
# Sets up what the tests need and runs the whole default suite:
#
#   bash tests/run.sh                      everything but gpu and slow tests
#   bash tests/run.sh tests/unit -k beam   arguments go to pytest
#
# TEST_TIME_LIMIT (seconds, default 1500) bounds the run, so that a hang ends as a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup.sh
. launch/setup.sh

set_up test
heading "Running the tests"
# Killed 30 s after the limit, so that a process which ignores TERM cannot keep the run alive.
exec timeout --kill-after=30 "${TEST_TIME_LIMIT:-1500}" python -m pytest "$@"
