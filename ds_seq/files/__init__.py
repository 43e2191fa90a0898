"""Files: atomic writes, checksums, and locks between processes."""

from ds_seq.files.atomic import (
    changed_settings,
    check_not_input,
    publish,
    remove,
    remove_folder,
    remove_leftovers,
    replacing,
    sync,
    temporary_path,
    unwritable,
    write_bytes,
    write_json,
    write_text,
    writing,
)
from ds_seq.files.checksums import (
    CHECKED_AT_LOAD,
    SUMS_FILE,
    check_file,
    check_sums,
    fingerprint,
    is_sealed,
    sealed_json,
    write_sums,
)
from ds_seq.files.locks import LOCK_FILE, Lock, lock_of
from ds_seq.files.process import host

__all__ = [
    "CHECKED_AT_LOAD",
    "LOCK_FILE",
    "SUMS_FILE",
    "Lock",
    "changed_settings",
    "check_file",
    "check_not_input",
    "check_sums",
    "fingerprint",
    "host",
    "is_sealed",
    "lock_of",
    "publish",
    "remove",
    "remove_folder",
    "remove_leftovers",
    "replacing",
    "sealed_json",
    "sync",
    "temporary_path",
    "unwritable",
    "write_bytes",
    "write_json",
    "write_sums",
    "write_text",
    "writing",
]
