#!/usr/bin/env bash
# Parallel text by mtdata (https://github.com/thammegowda/mtdata), which knows more than 200,000
# data sets: what a signature of mtdata describes, or one of its recipes.
#
#   bash prepare_data/mtdata.sh mtdata.signature.txt FOLDER
#   bash prepare_data/mtdata.sh wmt22-deen FOLDER    # see `mtdata list-recipe`
#
# An experiment names the result as `data: {raw: FOLDER}`. The first run records the SHA-256 of all
# files of text in FOLDER/SHA256SUMS; later ones compare: the same signature, the same text.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/fetch_mtdata.py" "$@"
