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
    check_file,
    fingerprint,
    is_sealed,
    sealed_json,
)
from ds_seq.files.locks import LOCK_FILE, Lock, lock_of
from ds_seq.files.process import host

__all__ = [
    "CHECKED_AT_LOAD",
    "LOCK_FILE",
    "Lock",
    "changed_settings",
    "check_file",
    "check_not_input",
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
    "write_text",
    "writing",
]
