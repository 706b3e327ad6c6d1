#!/usr/bin/env bash
# One machine: one process on each of its GPUs. The same line again goes on where the run was.
#
#   launch/one_node.sh experiment=clm_ende_1024 data.path=data/ende
#
# DEVICES: processes, if not one for each GPU. xlm-train starts torchrun by itself and passes SIGTERM, SIGINT and SIGUSR1 on to the
# workers, who save and leave; the exit status is then 75.
set -euo pipefail

DEVICES=${DEVICES:-$(nvidia-smi --list-gpus | wc -l)}
exec xlm-train trainer.nodes=1 trainer.devices="$DEVICES" "$@"
