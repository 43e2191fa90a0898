# shellcheck shell=bash
# Sourced by the sbatch scripts in the root of the repository. Sets up the environment, the address of
# rank 0, `num_tasks`, the number of ranks, and `step`, the options of the one srun that starts all of
# them. All counts come from SLURM.

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

num_tasks=$((SLURM_JOB_NUM_NODES * tasks_per_node))
step=(
    --nodes="$SLURM_JOB_NUM_NODES"
    --ntasks="$num_tasks"
    --ntasks-per-node="$tasks_per_node"
    --cpus-per-task="$cpus_per_task"
    --kill-on-bad-exit=1 # a rank that dies ends the others, which would wait for it forever
)
# Each task sees all GPUs of its node and uses the one given by its local rank.
[ -z "${SLURM_GPUS_ON_NODE:-}" ] || step+=(--gpu-bind=none)
