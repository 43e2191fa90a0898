#!/usr/bin/env bash
# Raw text of CNN/DailyMail (news article -> highlights, 312,000 pairs), as {train,val,test}.{source,target}:
#
#   bash prepare_data/cnn_dm.sh [FOLDER]        # default: data/cnn_dm/raw
#   ds-seq prepare configs/experiments/summarize_cnn_dm.yaml
#
# Untried: its server was out of our reach; the layout of the archive is the documented one. Run it
# again after an interruption: it goes on where it was. WMT_MIRROR and OVERLAP: see
# prepare_data/README.md.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/recipe.py" cnn_dm "$@"
