#!/usr/bin/env bash
# Download the raw text of WMT14 English-French (41 million pairs, 7 GB of archives):
#
#   bash prepare_data/wmt14_en_fr.sh [FOLDER]        # default: data/wmt14_en_fr/raw
#   ds-seq prepare EXPERIMENT.yaml  # a copy of wmt16_en_de_base.yaml with this folder
#
# Train: Europarl v7, Common Crawl, UN, News Commentary v9, Giga-French. Valid: newstest2013. Test:
# newstest2014, all 3,003 sentences. Run it again after an interrupted download: complete archives
# are kept.
set -euo pipefail
out=${1:-data/wmt14_en_fr/raw}

# shellcheck source=prepare_data/download.sh
. "$(dirname "${BASH_SOURCE[0]}")/download.sh"

need curl tar gzip sacrebleu
fetch http://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz
fetch http://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz
fetch http://www.statmt.org/wmt13/training-parallel-un.tgz
fetch http://www.statmt.org/wmt14/training-parallel-nc-v9.tgz
fetch http://www.statmt.org/wmt10/training-giga-fren.tar

for lang in en fr; do
    {
        cat "$out/unpacked/training/europarl-v7.fr-en.$lang" \
            "$out/unpacked/commoncrawl.fr-en.$lang" \
            "$out/unpacked/un/undoc.2000.fr-en.$lang" \
            "$out/unpacked/training/news-commentary-v9.fr-en.$lang"
        gzip -dc "$out/unpacked/giga-fren.release2.fixed.$lang.gz"
    } >"$out/train.$lang"
    side=ref
    if [ "$lang" = en ]; then side=src; fi
    sacrebleu -t wmt13 -l en-fr --echo "$side" >"$out/newstest2013.$lang"
    sacrebleu -t wmt14/full -l en-fr --echo "$side" >"$out/newstest2014.$lang"
done
wc -l "$out"/{train,newstest2013,newstest2014}.{en,fr}
