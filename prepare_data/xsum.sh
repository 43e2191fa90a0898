#!/usr/bin/env bash
# Raw text of XSum (news article -> one sentence, 227,000 pairs), as {train,val,test}.{source,target}:
#
#   bash prepare_data/xsum.sh [FOLDER]        # default: data/xsum/raw
#   ds-seq prepare configs/experiments/summarize_xsum.yaml
#
# Untried: its server was out of our reach; the layout of the archive is the documented one. Run it
# again after an interruption: it goes on where it was. WMT_MIRROR and OVERLAP: see
# prepare_data/README.md.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/recipe.py" xsum "$@"
