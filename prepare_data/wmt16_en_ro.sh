#!/usr/bin/env bash
# Raw text of WMT16 English-Romanian (610,000 pairs), as {train,val,test}.{source,target}:
#
#   bash prepare_data/wmt16_en_ro.sh [FOLDER]        # default: data/wmt16_en_ro/raw
#
# Untried: its server was out of our reach; the layout of the archive is the documented one. Run it
# again after an interruption: it goes on where it was. WMT_MIRROR and OVERLAP: see
# prepare_data/README.md.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/recipe.py" wmt16_en_ro "$@"
