#!/usr/bin/env bash
# Several machines without a scheduler: the same line on each of them, within a minute of each other.
#
#   NODES=8 HOST=node1 launch/several_nodes.sh experiment=clm_ende_1024 data.path=data/ende
#
# NODES: how many machines. HOST: one of them, by the name that it has itself and under which the others reach it; its port PORT
# (29500) must be free. DEVICES: processes a machine, if not one for each GPU; the same on all. data.path and paths.runs are on a
# disk that all see. Machines with several networks: NCCL_SOCKET_IFNAME (GPUs) and GLOO_SOCKET_IFNAME name the one to use.
#
# SIGTERM, SIGINT or SIGUSR1 to this script on any one machine: all save and leave with status 0; status.json says `preempted`.
# (Started by another script with `&` it gets no SIGINT, as nothing does that a shell so starts: SIGTERM is the one to send.)
# A machine that is lost takes the others down within trainer.timeout_seconds; the same line on all of them again goes on from the
# last checkpoint.
set -uo pipefail

: "${NODES:?say NODES=...: how many machines}"
: "${HOST:?say HOST=...: the machine that the others connect to}"
DEVICES=${DEVICES:-$(nvidia-smi --list-gpus | wc -l)}
PATIENCE=60 # seconds

# torchrun, in a session of its own: a signal from the terminal reaches only this script, torchrun would give the run up.
setsid python -m xlm_train.runtime.launcher --nnodes="$NODES" --nproc-per-node="$DEVICES" \
    --rdzv-backend=c10d --rdzv-endpoint="$HOST:${PORT:-29500}" --rdzv-id=xlm_train \
    --module xlm_train.commands.train trainer.nodes="$NODES" trainer.devices="$DEVICES" "$@" &
agent=$!
trap 'pkill -TERM --parent "$agent"' TERM INT USR1 # its workers

# A machine cut off from HOST: its workers end by themselves, its torchrun would wait for HOST much longer.
had_workers=
alone=0
while kill -0 "$agent" 2>/dev/null; do
    if ps --ppid "$agent" -o stat= | awk '!/^Z/ { found = 1 } END { exit !found }'; then
        had_workers=yes
        alone=0
    elif [[ $had_workers ]] && ((++alone == PATIENCE)); then
        echo "several_nodes.sh: the processes here have ended, $HOST does not answer" >&2
        kill -KILL "$agent"
    fi
    sleep 1
done
wait "$agent"
