#!/usr/bin/env bash
# What this machine's GPUs do with the model, in some ten minutes; writes gpu.json, to be sent back.
#
#   launch/bench_gpu.sh [--json FILE]
#
# Checks the wheel against the devices, tests every GPU and link by itself, trains at the real shape, kills and resumes a run.
# VENV (.venv of the checkout) is the Python environment, where none is active. benchmarks/gpu.py does the work.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${VIRTUAL_ENV:-} ]]; then
    # shellcheck disable=SC1091
    source "${VENV:-$checkout/.venv}/bin/activate"
fi
PYTHONPATH=$checkout exec python -m benchmarks.gpu "$@"
