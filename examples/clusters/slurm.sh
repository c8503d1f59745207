#!/usr/bin/env bash
# Joint training on 8 nodes of 8 GPUs under Slurm: sbatch examples/clusters/slurm.sh [RECIPE] [key=value ...]
# Where the job is stopped (time limit, preemption) the same command resumes it from its last checkpoint.
#SBATCH --job-name=unimedvl
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --requeue
set -euo pipefail

recipe="${1:-unimedvl-14b/curriculum.yaml}"
master="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=8
srun torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc-per-node 8 \
    --rdzv-backend c10d \
    --rdzv-endpoint "$master:29500" \
    --rdzv-id "$SLURM_JOB_ID" \
    -m unimedvl.training.run "$recipe" "${@:2}"
