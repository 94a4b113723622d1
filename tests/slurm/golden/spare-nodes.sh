#!/bin/bash

# Parameters
#SBATCH --gres=gpu:8
#SBATCH --job-name=tiny-ab12
#SBATCH --no-kill
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/tiny-ab12/job-%j.log
#SBATCH --requeue
#SBATCH --signal=USR1@120

# setup
export PYTHONPATH=/runs/tiny-ab12/code${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1

# command
export SUBMITIT_EXECUTOR=slurm
exec /venv/bin/python -P -u -m launchyard.launcher.backends.slurm.owner /runs/tiny-ab12 --notice=120 --job-id="$SLURM_JOB_ID" --restarts="${SLURM_RESTART_COUNT:-0}" --nodes="$SLURM_JOB_NODELIST"
