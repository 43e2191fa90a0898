#!/usr/bin/env bash
# Sourced by the WMT recipes, which set `out` to the output folder.

need() { # TOOL ...: exit with a clear message if one of them is missing
    local tool
    for tool; do
        command -v "$tool" >/dev/null || { echo "$0: error: $tool is not installed" >&2; exit 2; }
    done
}

fetch() { # URL: download one archive unless it exists, and unpack it
    # shellcheck disable=SC2154 # out is set by the recipe
    local archive="$out/archives/${1##*/}"
    mkdir -p "$out/archives" "$out/unpacked"
    if [ ! -e "$archive" ]; then
        curl -fL --retry 5 -C - --progress-bar -o "$archive.part" "$1" \
            || { echo "$0: error: cannot download $1; check the network and run this again" >&2; exit 2; }
        mv "$archive.part" "$archive"
    fi
    tar -xf "$archive" -C "$out/unpacked"
}
