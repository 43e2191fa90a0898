# shellcheck shell=bash
# Sourced by slurm_train.sbatch. Reads the line of the file `sweep` that belongs to this task of a job array
# into `settings`, overrides as on the command line; quotes work as in a shell.

: "${sweep:?}"
fail_sweep() {
    echo "ds-seq: error: $sweep: $*" >&2
    exit 2
}
[ -r "$sweep" ] || fail_sweep "no such file, or it cannot be read"
[ -n "${SLURM_ARRAY_TASK_ID:-}" ] || fail_sweep "needs a job array: sbatch --array=1-N"

line=$(grep -v '^[[:space:]]*\(#\|$\)' "$sweep" | sed -n "${SLURM_ARRAY_TASK_ID}p")
[ -n "$line" ] ||
    fail_sweep "has no line $SLURM_ARRAY_TASK_ID; it has $(grep -cv '^[[:space:]]*\(#\|$\)' "$sweep") (sbatch --array)"
# xargs removes quotes and runs nothing
words=$(printf '%s\n' "$line" | xargs -n1 printf '%s\n') || fail_sweep "line $SLURM_ARRAY_TASK_ID: a quote is not closed"
mapfile -t settings <<<"$words"
case " $line" in
    *[[:space:]\'\"]run_dir=* | *[[:space:]\'\"]name=*) ;;
    *)
        stem=${sweep##*/}
        settings+=("run_dir=runs/${stem%.*}/$SLURM_ARRAY_TASK_ID")
        ;;
esac
