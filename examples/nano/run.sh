#!/usr/bin/env bash
# Install the wheels of .wheels/ beside the machine's own Python packages, and train the nano's stages on a GPU from
# packed records and the weights that go along with them (examples/nano/carried.py).
#     bash examples/nano/run.sh PACKED RESULTS [further arguments of python -m examples.nano.train]
# Works without a network. RESULTS gets at most 8 files of 15 MiB, as they are ready. PYTHON names another interpreter.
set -euo pipefail
packed=$(realpath "$1") results=$(realpath -m "$2")
shift 2
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if compgen -G ".wheels/*.whl" > /dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" .wheels/*.whl
fi
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
"$python" -m examples.nano.train --budget gpu --packed "$packed" --out "$site/run" --results "$results" "$@"
