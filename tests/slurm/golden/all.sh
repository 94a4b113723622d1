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
trap 'status=$?; echo "SetupError: setup of the cluster file ended with status $status at: $setup_command" >&2; exit $((status ? status : 1))' EXIT
check_setup() { local status=$?; [ "$status" = 0 ] || exit "$status"; }
setup_command='module load cuda/13'
eval "$setup_command"
check_setup
setup_command='export A="b c"'
eval "$setup_command"
check_setup
trap - EXIT
unset setup_command check_setup
export PYTHONPATH=/runs/tiny-ab12/code${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1

# command
export SUBMITIT_EXECUTOR=slurm
exec /venv/bin/python -P -u -m launchyard.launcher.backends.slurm.owner /runs/tiny-ab12 --notice=300 --job-id="$SLURM_JOB_ID" --restarts="${SLURM_RESTART_COUNT:-0}" --nodes="$SLURM_JOB_NODELIST"
