# shellcheck shell=bash
# Sourced by the sbatch scripts in the folder of submission. Sets up the environment, the address of
# rank 0, `num_tasks`, the number of ranks, `job`, the name by which scontrol and scancel know this job,
# `logs`, the folder of one log per rank, and `step`, the options of the one srun that starts all ranks.
# All counts come from SLURM.

if [ -z "${VIRTUAL_ENV:-}" ]; then
    # shellcheck disable=SC1091
    . .venv/bin/activate
fi

tasks_per_node=${SLURM_GPUS_ON_NODE:-${SLURM_NTASKS_PER_NODE:-1}} # without GPUs: as requested
cpus_per_task=$((${SLURM_CPUS_ON_NODE:-1} / tasks_per_node))
[ "$cpus_per_task" -ge 1 ] || cpus_per_task=1

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # head would close the pipe before scontrol is done
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # two jobs that share a node must not share a port
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS=$cpus_per_task

# The number of one task of an array is also that of the whole array.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

logs=${DS_SEQ_RANK_LOGS:-.}/${SLURM_JOB_NAME:-ds_seq}-$job.ranks
mkdir -p "$logs"
echo "Each rank writes its own log: $logs/RANK.out"

num_tasks=$((SLURM_JOB_NUM_NODES * tasks_per_node))
step=(
    --nodes="$SLURM_JOB_NUM_NODES"
    --ntasks="$num_tasks"
    --ntasks-per-node="$tasks_per_node"
    --cpus-per-task="$cpus_per_task"
    --output="$logs/%t.out"
    --open-mode=append   # a job that comes back continues its logs
    --kill-on-bad-exit=1 # a rank that dies ends the others, which would wait for it forever
)
# Each task sees all GPUs of its node and uses the one given by its local rank.
[ -z "${SLURM_GPUS_ON_NODE:-}" ] || step+=(--gpu-bind=none)

# Copies the mistakes that ranks have reported into the log of the job, once each.
show_errors() {
    grep -hs "^ds-seq: error: " "$logs"/*.out | awk '!seen[$0]++' | sed -n 1,20p >&2 || true
}
