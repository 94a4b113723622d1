#!/bin/bash

# Parameters
#SBATCH --account=team
#SBATCH --constraint='h100&ib'
#SBATCH --cpus-per-task=96
#SBATCH --exclude='node[1,3]'
#SBATCH --exclusive
#SBATCH --gres=gpu:8
#SBATCH --job-name=tiny-ab12
#SBATCH --mem=858306M
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/tiny-ab12/job-%j.log
#SBATCH --partition=gpu,spot
#SBATCH --qos=high
#SBATCH --requeue
#SBATCH --reservation=team
#SBATCH --signal=USR1@300
#SBATCH --time=24:00:00

# setup
trap 'status=$?; echo "SetupError: setup of the cluster file ended with status $status at: $LAUNCHYARD_SETUP" >&2; exit $((status ? status : 1))' EXIT
launchyard_check() { local status=$?; [ "$status" = 0 ] || exit "$status"; }
LAUNCHYARD_SETUP='module load cuda/13'
eval "$LAUNCHYARD_SETUP"
launchyard_check
LAUNCHYARD_SETUP='export A="b c"'
eval "$LAUNCHYARD_SETUP"
launchyard_check
trap - EXIT
unset LAUNCHYARD_SETUP launchyard_check
export PYTHONPATH=/runs/tiny-ab12/code${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1

# command
export SUBMITIT_EXECUTOR=slurm
exec /venv/bin/python -P -u -m launchyard.launcher.backends.slurm.owner /runs/tiny-ab12 --notice=300 --job-id="$SLURM_JOB_ID" --restarts="${SLURM_RESTART_COUNT:-0}" --nodes="$SLURM_JOB_NODELIST"
