#!/usr/bin/env bash
# Raw text of IWSLT14 German-English (TED talks, 20 MB):
#
#   bash prepare_data/iwslt14_de_en.sh [FOLDER]      # default: data/iwslt14_de_en/raw
#   ds-seq prepare EXPERIMENT.yaml                   # with the printed data.raw
#
# As is customary: every 23rd training pair is for validation; the test sets are dev2010, TEDX
# dev2012, tst2010, tst2011 and tst2012, 6,750 pairs together. Run it again after an interruption:
# it goes on where it was. WMT_MIRROR and OVERLAP: see prepare_data/README.md.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/recipe.py" iwslt14_de_en "$@"
