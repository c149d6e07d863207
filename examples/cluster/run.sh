#!/bin/sh
# Starts a Ray head and a worker as separate programs on this machine, audits the embedded samples on them, and ends
# both. On a real cluster, the worker's command runs on other machines, with the head's address.
# Usage: pip install 'medpfl[cluster]'; sh run.sh [OUT]
set -eu
out=${1:-runs/cluster}
port=${PORT:-6380}
export RAY_USAGE_STATS_ENABLED=0

ray start --head --node-ip-address=127.0.0.1 --port="$port" --num-cpus=1 --include-dashboard=false --block >/dev/null 2>&1 &
head=$!
worker=
trap 'kill "$head" $worker 2>/dev/null; wait' EXIT INT TERM
tries=0
until RAY_ADDRESS="127.0.0.1:$port" ray status >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || { echo "the head did not start" >&2; exit 1; }
    sleep 1
done
ray start --address="127.0.0.1:$port" --node-ip-address=127.0.0.1 --num-cpus=1 --block >/dev/null 2>&1 &
worker=$!

RAY_ADDRESS="127.0.0.1:$port" medpfl audit samples --model "LeNet('idlg')" --attack iDLG --images 8 \
    --engine ray --out "$out"
