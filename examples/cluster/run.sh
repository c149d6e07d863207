#!/bin/sh
# Starts a Ray head and a worker as separate programs on this machine, audits the embedded samples on them, and ends
# both. On a real cluster, the worker's command runs on other machines, with the head's address.
# Usage: pip install 'medpfl[cluster]'; sh run.sh [OUT]
set -eu
out=${1:-runs/cluster}
port=${PORT:-6380}
export RAY_USAGE_STATS_ENABLED=0
# All programs that take part need this token; on a real cluster, give it to every machine.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python3 -c "import secrets; print(secrets.token_hex(32))")
export RAY_AUTH_TOKEN

ray start --head --node-ip-address=127.0.0.1 --port="$port" --num-cpus=1 --include-dashboard=false --block >/dev/null 2>&1 &
head=$!
worker=
end() { kill "$1" 2>/dev/null && wait "$1" || true; }
# The worker first: it takes leave of the head.
trap '[ -z "$worker" ] || end "$worker"; end "$head"' EXIT
trap 'exit 130' INT TERM
tries=0
until RAY_ADDRESS="127.0.0.1:$port" ray status >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || { echo "the head did not start" >&2; exit 1; }
    sleep 1
done
ray start --address="127.0.0.1:$port" --node-ip-address=127.0.0.1 --num-cpus=1 --block >/dev/null 2>&1 &
worker=$!

RAY_ADDRESS="127.0.0.1:$port" medpfl audit samples --model "LeNet('idlg')" --attack "iDLG(steps=30)" --images 8 \
    --engine ray --out "$out"
