#!/usr/bin/env bash
# A Ray cluster on this machine alone, to try `emsweep submit` on: local.sh start [NODES] | stop
#
# One node (the default) has all GPUs of the machine. With more, each node claims all cores, which
# are the same ones, and no GPU: for trying, not for measuring. The dashboard listens on loopback,
# Ray's own ports on all of the machine's addresses; all of them want the token.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
state=/tmp/em-sweeps-local-$(id -u)
gcs=127.0.0.1:6379

usage() {
  echo "usage: local.sh start [NODES] | stop" >&2
  exit 2
}

run_node() { # number, then the options of ray start; it runs on until it gets SIGTERM
  local number=$1
  shift
  # Raylets of one machine must not want the same ports, nor unpack a job's code into one folder: the
  # second removes it under the first one's driver.
  setsid ray start --block --disable-usage-stats --node-ip-address 127.0.0.1 \
    --temp-dir "$state/n$number" --num-cpus "$(nproc)" --object-store-memory $((256 * 1024 * 1024)) \
    --min-worker-port $((20000 + 1000 * number)) --max-worker-port $((20999 + 1000 * number)) \
    --dashboard-agent-listen-port $((52365 + number)) \
    "$@" >"$state/node-$number.log" 2>&1 </dev/null &
  echo $! >"$state/node-$number.pid"
}

start() {
  local nodes=$1 gpus=() number
  if ! mkdir -m 700 "$state" 2>/dev/null; then
    echo "$state is there already: stop the cluster first (local.sh stop)" >&2
    exit 2
  fi
  (umask 077 && python -c "import secrets; print(secrets.token_hex(32))" >"$state/token")
  unset RAY_AUTH_TOKEN RAY_ADDRESS # they would go before what follows
  export RAY_AUTH_TOKEN_PATH=$state/token
  # shellcheck source=configs/clusters/node_env.sh
  . "$here/node_env.sh"
  if ((nodes > 1)); then gpus=(--num-gpus 0); fi

  run_node 0 --head --port "${gcs#*:}" --dashboard-host 127.0.0.1 --dashboard-port 8265 "${gpus[@]}"
  for _ in {1..60}; do
    ray health-check --address "$gcs" >/dev/null 2>&1 && break
    kill -0 "$(cat "$state/node-0.pid")" 2>/dev/null || break
    sleep 1
  done
  for ((number = 1; number < nodes; number++)); do
    run_node "$number" --address "$gcs" "${gpus[@]}"
  done
  if ! python "$here/wait_for_nodes.py" "$gcs" "$nodes"; then
    tail -n 20 "$state"/node-*.log >&2
    stop
    exit 1
  fi
  cat <<EOF
$nodes node(s) on $gcs. In the shell that submits:
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$state/token
  emsweep submit SPEC --address http://127.0.0.1:8265 --store FOLDER
A machine that is taken back: kill -TERM \$(cat $state/node-1.pid). The end: local.sh stop
EOF
}

stop() { # the head last: the others say goodbye to it
  local file pid
  if [ ! -O "$state" ]; then
    echo "there is no cluster of local.sh: no folder $state of yours" >&2
    return
  fi
  echo "stopping the nodes, which takes up to a minute"
  for file in $(find "$state" -name "node-*.pid" | sort --reverse --version-sort); do
    pid=$(cat "$file")
    kill -TERM "$pid" 2>/dev/null || true
    for _ in {1..40}; do # a busy node drains for 30 s at most
      kill -0 "$pid" 2>/dev/null || break
      sleep 1
    done
    kill -KILL -- "-$pid" 2>/dev/null || true # what is left of its group
  done
  rm -rf "$state"
}

case "${1:-}" in
  start)
    [[ "${2:-1}" =~ ^[1-9]$ ]] || usage
    start "${2:-1}"
    ;;
  stop) stop ;;
  *) usage ;;
esac
