#!/usr/bin/env bash
# A Ray node without resources, and a Prefect process worker that runs flows on it.
# Environment: RAY_HEAD (host:port of the head's GCS), WORK_POOL (a pool of type `process`),
# PREFECT_API_URL, and more options for `ray start` in RAY_START_OPTIONS.
set -euo pipefail
# Without job control, bash starts background processes with SIGINT ignored, and Prefect stops its
# workers with SIGINT.
set -m
: "${RAY_HEAD:?host:port of the head, for example ray-head:6379}"
: "${WORK_POOL:?name of a work pool of type process}"
: "${PREFECT_API_URL:?URL of the Prefect API, for example http://prefect-server:4200/api}"

# No tasks run here: drivers join the cluster through this node.
# shellcheck disable=SC2086  # several options
ray start --address="$RAY_HEAD" --num-cpus=0 --num-gpus=0 --block ${RAY_START_OPTIONS:-} &
node=$!

# Flows join the cluster at this address, through the node on their machine.
RAY_ADDRESS="$RAY_HEAD" prefect worker start --pool "$WORK_POOL" --type process --with-healthcheck &
worker=$!

# Neither is of use without the other: when one ends, end both.
stop() {
    kill "$worker" 2>/dev/null || true
    wait "$worker" 2>/dev/null || true
    kill "$node" 2>/dev/null || true
    wait "$node" 2>/dev/null || true
}
trap 'stop; exit 143' TERM INT
ended=0
wait -n "$node" "$worker" || ended=$?
stop
exit "$ended"
