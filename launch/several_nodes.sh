#!/usr/bin/env bash
# Several machines without a scheduler: the same line on each of them, within WAIT seconds of each other.
#
#   NODES=8 HOST=node1 launch/several_nodes.sh experiment=clm_ende_1024 data.path=data/ende
#
# NODES: how many machines, or the fewest and the most (2:8): machines may then come and go, as below. HOST: one of them, by the
# name that it has itself or its address, under which the others reach it; its port PORT (29500) must be free. DEVICES: processes a
# machine, if not one for each GPU; the same on all. WAIT (60): seconds that a machine waits for HOST. data.path and paths.runs are on
# a disk that all see. Machines with several networks: NCCL_SOCKET_IFNAME (GPUs) and GLOO_SOCKET_IFNAME name the one to use.
#
# SIGTERM, SIGINT or SIGUSR1 to this script on any one machine: all save and leave with status 75.
# (Started by another script with `&` it gets no SIGINT, as nothing does that a shell so starts: SIGTERM is the one to send.)
# A machine that is lost takes the others down within trainer.timeout_seconds; the same line on all of them again goes on from the
# last checkpoint. With NODES=2:8 the others do that by themselves, up to RESTARTS (20) times: after half of WAIT they go on
# without the machine that left or was lost, and when it starts the same line again all go on together. HOST must stay.
set -uo pipefail

: "${NODES:?say NODES=...: how many machines}"
: "${HOST:?say HOST=...: the machine that the others connect to}"
DEVICES=${DEVICES:-$(nvidia-smi --list-gpus | wc -l)}
WAIT=${WAIT:-60}
PATIENCE=60 # seconds
nodes=$NODES
restarts=0
if [[ $NODES == *:* ]]; then
    # shellcheck disable=SC2016 # read in each worker: how many machines take part this time
    nodes='${oc.decode:${oc.env:GROUP_WORLD_SIZE}}'
    restarts=${RESTARTS:-20}
fi

told=
agent=
leave() {
    told=yes
    pkill -TERM --parent "$agent" || kill -TERM "$agent" # its workers; without any it waits for the others
}
trap leave TERM INT USR1

while true; do
    # torchrun, in a session of its own: a signal from the terminal reaches only this script, torchrun would give the run up.
    setsid python -m xlm_train.runtime.launcher --nnodes="$NODES" --nproc-per-node="$DEVICES" \
        --rdzv-backend=c10d --rdzv-endpoint="$HOST:${PORT:-29500}" --rdzv-id=xlm_train \
        --rdzv-conf="read_timeout=$WAIT,last_call_timeout=$((WAIT / 2))" \
        --module xlm_train.commands.train trainer.nodes="$nodes" trainer.devices="$DEVICES" "$@" &
    agent=$!

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
    status=$?
    case $status in
    0 | 2 | 71) exit "$status" ;; # finished; something to fix, too little memory
    esac
    if [[ $told ]]; then
        [[ $had_workers ]] && ((status != 128 + $(kill -l TERM))) && exit "$status"
        exit 75 # before training had begun
    fi
    ((restarts-- > 0)) || exit "$status"
done
