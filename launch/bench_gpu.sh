#!/usr/bin/env bash
# What this machine's GPUs do with the model, within nine minutes; writes gpu.json, to be sent back.
#
#   launch/bench_gpu.sh [--json FILE] [--only PARTS] [--seconds N]        --help lists the parts
#
# Checks the wheel against the devices, tests every GPU and link by itself, trains at the real shape on a corpus that it makes
# up, kills and resumes a run, and more. The file is written after each part; a part that fails does not stop the others.
# VENV (.venv of the checkout) is the Python environment, where none is active; or PYTHON=python3 names an interpreter that has
# torch and what else pyproject.toml lists. benchmarks/gpu.py does the work.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${PYTHON:-} && -z ${VIRTUAL_ENV:-} ]]; then
    # shellcheck disable=SC1091
    source "${VENV:-$checkout/.venv}/bin/activate"
fi
PYTHONPATH=$checkout${PYTHONPATH:+:$PYTHONPATH} exec "${PYTHON:-python}" -m benchmarks.gpu "$@"
