#!/usr/bin/env bash
# Creates the virtual environment and installs ds_seq into it. launch/quickstart.sh, tests/run.sh and
# .ci/run source this file and call `set_up`. To run it directly:
#
#   bash launch/setup.sh           dependencies of training and translation
#   bash launch/setup.sh test      these and pytest
#   bash launch/setup.sh dev       these and ruff, mypy, pre-commit
#
# Uses the active virtual environment, or creates .venv if there is none. A stamp file in the
# environment records what was installed from which setup.py, so a second call is instant and
# contacts no package index.

DS_SEQ_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

heading() {
    if [ -t 1 ]; then
        printf '\n\033[1m== %s\033[0m\n' "$*"
    else
        printf '\n== %s\n' "$*"
    fi
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

activate_environment() {
    if [ -z "${VIRTUAL_ENV:-}" ]; then
        local venv=$DS_SEQ_ROOT/.venv python=${PYTHON:-python3}
        if [ ! -f "$venv/bin/activate" ]; then
            command -v "$python" >/dev/null || fail "no $python found; install Python 3.10 or newer"
            "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
                fail "$("$python" --version) is too old; set Python 3.10 or newer: PYTHON=python3.12 bash $0"
            heading "Creating a virtual environment in $venv"
            "$python" -m venv "$venv" || {
                rm -rf "$venv"
                fail "Python could not create a virtual environment (Debian, Ubuntu: apt-get install python3-venv)"
            }
        fi
        # shellcheck disable=SC1091
        . "$venv/bin/activate"
    fi
    # VIRTUAL_ENV may be set in a shell that did not export its PATH.
    export PATH="$VIRTUAL_ENV/bin:$PATH"
}

set_up() {
    local extra=${1:-base} target=$DS_SEQ_ROOT stamp key covered quiet=()
    activate_environment
    stamp=$VIRTUAL_ENV/.ds_seq.stamp
    # The path is part of the key: an editable install belongs to one checkout.
    key="$(cksum <"$DS_SEQ_ROOT/setup.py" | tr -d ' ') $DS_SEQ_ROOT"
    if grep -qsxF "$extra $key" "$stamp"; then
        return
    fi

    case $extra in
        base) covered="base" ;;
        test) covered="base test" ;;
        dev) covered="base test dev" ;;
        *) fail "set_up: unknown extra '$extra'" ;;
    esac
    heading "Installing ds_seq [$extra] into $VIRTUAL_ENV (a few minutes the first time)"
    [ -t 1 ] || quiet=(--quiet) # a progress bar is for a terminal
    rm -f "$stamp"
    [ "$extra" = base ] || target="${DS_SEQ_ROOT}[$extra]"
    python -m pip install "${quiet[@]}" -e "$target" || fail "the installation failed (see above)"
    for extra in $covered; do
        printf '%s %s\n' "$extra" "$key"
    done >"$stamp"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    set_up "${1:-base}"
    echo "Ready. Activate it with: . $VIRTUAL_ENV/bin/activate"
fi
