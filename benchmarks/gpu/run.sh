#!/usr/bin/env bash
# Run the GPU script with the wheels of .wheels/.
#     bash benchmarks/gpu/run.sh [arguments of python -m benchmarks.gpu]
set -euo pipefail
exec bash "$(dirname "$0")/with_wheels.sh" -m benchmarks.gpu "$@"
