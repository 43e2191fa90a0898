#!/usr/bin/env bash
# Download the raw text of WMT16 English-German (4.5 million pairs, 1.5 GB of archives):
#
#   bash prepare_data/wmt16_en_de.sh [FOLDER]        # default: data/wmt16_en_de/raw
#   ds-seq prepare configs/experiments/wmt16_en_de_base.yaml
#
# Train: Europarl v7, Common Crawl, News Commentary v11. Valid: newstest2013. Test: newstest2014,
# all 3,003 sentences. Run it again after an interrupted download: complete archives are kept.
set -euo pipefail
out=${1:-data/wmt16_en_de/raw}

# shellcheck source=prepare_data/download.sh
. "$(dirname "${BASH_SOURCE[0]}")/download.sh"

need curl tar sacrebleu
fetch http://www.statmt.org/europarl/v7/de-en.tgz
fetch http://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz
fetch http://data.statmt.org/wmt16/translation-task/training-parallel-nc-v11.tgz

for lang in en de; do
    cat "$out/unpacked/europarl-v7.de-en.$lang" \
        "$out/unpacked/commoncrawl.de-en.$lang" \
        "$out/unpacked/training-parallel-nc-v11/news-commentary-v11.de-en.$lang" \
        >"$out/train.$lang"
    side=ref
    if [ "$lang" = en ]; then side=src; fi
    sacrebleu -t wmt13 -l en-de --echo "$side" >"$out/newstest2013.$lang"
    sacrebleu -t wmt14/full -l en-de --echo "$side" >"$out/newstest2014.$lang"
done
wc -l "$out"/{train,newstest2013,newstest2014}.{en,de}
