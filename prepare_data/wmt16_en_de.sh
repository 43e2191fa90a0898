#!/usr/bin/env bash
# Raw text of WMT16 English-German (4.56 million pairs, 1.7 GB of archives, 3 GB of text):
#
#   bash prepare_data/wmt16_en_de.sh [FOLDER]        # default: data/wmt16_en_de/raw
#   ds-seq prepare configs/experiments/wmt16_en_de_base.yaml
#
# Train: Europarl v7, Common Crawl, News Commentary v11. Valid: newstest2013. Test: newstest2014,
# all 3,003 sentences. Run it again after an interruption: it goes on where it was. WMT_MIRROR and
# OVERLAP: see prepare_data/README.md.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/recipe.py" wmt16_en_de "$@"
