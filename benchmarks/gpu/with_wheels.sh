#!/usr/bin/env bash
# Install the wheels of .wheels/ beside the machine's own Python packages, and run python with these arguments.
#     bash benchmarks/gpu/with_wheels.sh -m MODULE [arguments]
# Works from a checkout and from a bundle, without a network. PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if compgen -G ".wheels/*.whl" > /dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" .wheels/*.whl
fi
PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 "$python" "$@"
