#!/bin/bash

# Parameters
#SBATCH --comment='a b;$HOME '"'"'q'"'"' "d" %j #x'
#SBATCH --gres=gpu:8
#SBATCH --job-name=tiny-ab12
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/r/a b;$HOME '"'"'q'"'"' "d" %%j #x/job-%j.log'
#SBATCH --requeue
#SBATCH --signal=USR1@120

# setup
export PYTHONPATH='/r/a b;$HOME '"'"'q'"'"' "d" %j #x/code'${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1

# command
export SUBMITIT_EXECUTOR=slurm
exec /venv/bin/python -P -u -m launchyard.launcher.backends.slurm.owner '/r/a b;$HOME '"'"'q'"'"' "d" %j #x' --notice=120 --job-id="$SLURM_JOB_ID" --restarts="${SLURM_RESTART_COUNT:-0}" --nodes="$SLURM_JOB_NODELIST"
