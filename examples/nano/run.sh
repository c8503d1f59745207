#!/usr/bin/env bash
# Train the nano's stages on a GPU, with the wheels of .wheels/, from packed records and the weights that go along with
# them (examples/nano/carried.py).
#     bash examples/nano/run.sh PACKED RESULTS [further arguments of python -m examples.nano.train]
# Works without a network. RESULTS gets at most 8 files of 15 MiB, as they are ready. PYTHON names another interpreter.
set -euo pipefail
packed=$(realpath "$1") results=$(realpath -m "$2")
shift 2
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
HF_HUB_OFFLINE=1 bash "$(dirname "$0")/../../benchmarks/gpu/with_wheels.sh" \
    -m examples.nano.train --budget gpu --packed "$packed" --out "$run" --results "$results" "$@"
