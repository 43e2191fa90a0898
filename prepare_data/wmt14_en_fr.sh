#!/usr/bin/env bash
# Raw text of WMT14 English-French (40.8 million pairs, 7 GB of archives, 15 GB of text):
#
#   bash prepare_data/wmt14_en_fr.sh [FOLDER]        # default: data/wmt14_en_fr/raw
#   ds-seq prepare EXPERIMENT.yaml  # a copy of wmt16_en_de_base.yaml with the printed data.raw
#
# Train: Europarl v7, Common Crawl, UN, News Commentary v9, Giga-French. Valid: newstest2013. Test:
# newstest2014, all 3,003 sentences. Run it again after an interruption: it goes on where it was.
# WMT_MIRROR and OVERLAP: see prepare_data/README.md.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/recipe.py" wmt14_en_fr "$@"
