"""The arguments of `ds-seq slurm`."""

from __future__ import annotations

from ds_seq.commands.parser import COUNT, OVERRIDES, CommandParser, command_parser

JOBS = ("train", "prepare", "generate")


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq slurm`."""
    parser = command_parser(
        "slurm",
        "Write a job script for a SLURM cluster and show it; with --submit, submit it, too. The "
        "experiment is first checked for the number of ranks that the job would have.",
        usage="ds-seq slurm EXP.yaml [key=value ...] [--nodes N] [--gpus-per-node G] [--time T] "
        "[--submit]\n"
        "       ds-seq slurm RUN --job generate [--nodes N] ... -- --input F --output G",
        epilog="The script is written to slurm/ in the run folder, together with the logs of the "
        "job; it calls launch/slurm_JOB.sbatch of this installation.",
    )
    add = parser.add_argument
    add("experiment", help="experiment file (YAML); for --job generate, a run folder")
    add("overrides", nargs="*", metavar=OVERRIDES,
        help="replace single settings; for --job generate: --, and the options of `ds-seq "
        "generate`")  # fmt: skip
    add("--job", choices=JOBS, default=JOBS[0], help="what to do (default: %(default)s)")
    add("--nodes", type=COUNT, default=1, metavar="N", help="number of nodes (default: 1)")
    add("--gpus-per-node", type=COUNT, metavar="G", help="GPUs of each node; one rank for each")
    add("--tasks-per-node", type=COUNT, metavar="N",
        help="ranks of each node without GPUs (default: 1)")  # fmt: skip
    add("--cpus-per-rank", type=COUNT, metavar="N", help="CPUs of each rank")
    add("--time", metavar="T",
        help="time limit: minutes, H:M:S or D-H:M:S; a training that reaches it is saved, and its "
        "job requeued (default: that of launch/slurm_JOB.sbatch)")  # fmt: skip
    add("--partition", metavar="P", help="partition of the cluster")
    add("--account", metavar="A", help="account of the job")
    add("--sbatch", action="append", default=[], metavar="OPTION",
        help="another option of sbatch, such as --sbatch=--qos=high; repeatable")  # fmt: skip
    add("--after", type=COUNT, metavar="JOB", help="start when this job has succeeded")
    add("--sweep", metavar="FILE",
        help="train once for each line of this file, which holds overrides, in an array of "
        "jobs; run N is in runs/<name of the file>/N unless its line sets run_dir or "
        "name")  # fmt: skip
    add("--submit", action="store_true", help="submit the script")
    return parser
