#!/usr/bin/env bash
# Several processes of one run on this machine. See launch/README.md.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/local.sh [-n PROCESSES] [-c DEVICES | -g DEVICES] [-p PORT] [-l DIRECTORY] [-t SECONDS] COMMAND...

  -n  number of processes (2)
  -c  simulated CPU devices of each process
  -g  GPUs of each process: 0, 1, ... to process 0, the next ones to process 1, and so on
  -p  port of process 0, over which the processes find each other (a random one)
  -l  write the output to DIRECTORY/0.log, 1.log, ... instead of to the terminal, line by line
      after the number of the process
  -t  how long the others may take to end by themselves when one has failed (60)
TEXT
}

processes=2 cpus='' gpus='' port=$((10000 + RANDOM % 20000)) logs='' patience=60
while getopts 'n:c:g:p:l:t:h' option; do
  case $option in
    n) processes=$OPTARG ;;
    c) cpus=$OPTARG ;;
    g) gpus=$OPTARG ;;
    p) port=$OPTARG ;;
    l) logs=$OPTARG ;;
    t) patience=$OPTARG ;;
    h) usage && exit ;;
    *) usage >&2 && exit 2 ;;
  esac
done
shift $((OPTIND - 1))
for number in "$processes" "${cpus:-1}" "${gpus:-1}" "$port" "$patience"; do
  if ! [[ $number =~ ^[1-9][0-9]*$ ]]; then
    echo "error: '$number' is not a positive number" >&2
    exit 2
  fi
done
if (($# == 0)) || [[ $cpus && $gpus ]]; then
  usage >&2
  exit 2
fi
if [[ $logs ]]; then
  mkdir -p "$logs"
fi

export JAX_COORDINATOR_ADDRESS=localhost:$port JAX_NUM_PROCESSES=$processes
export PYTHONUNBUFFERED=1 # So that lines appear when they are written.
if [[ $cpus ]]; then
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$cpus"
fi

show() { # Each line of the input after the number of its process.
  trap '' INT TERM HUP # The last lines are about the signal.
  while IFS= read -r line || [[ $line ]]; do
    printf '[%d] %s\n' "$1" "$line"
  done
}

pids=() shows=()
for ((i = 0; i < processes; i++)); do
  settings=(JAX_PROCESS_ID="$i")
  if [[ $gpus ]]; then
    settings+=(JAX_LOCAL_DEVICE_IDS="$(seq -s, $((i * gpus)) $((i * gpus + gpus - 1)))")
  fi
  if [[ $logs ]]; then
    exec {output}>"$logs/$i.log"
  else
    exec {output}> >(show "$i")
    shows+=($!)
  fi
  (
    echo "local.sh: process $i has pid $BASHPID" # Before anything that the process itself says.
    exec env "${settings[@]}" "$@"
  ) >&"$output" 2>&1 {output}>&- &
  pids+=($!)
  exec {output}>&-
done

signal_all() {
  for pid in "${pids[@]}"; do
    if [[ $pid ]]; then
      kill -s "$1" "$pid" 2>/dev/null || true
    fi
  done
}
# nvg_jax saves on SIGTERM and exits with 0. Processes in the background of a script ignore SIGINT.
trap 'signal_all TERM' INT TERM HUP

failure=0 deadline='' running=$processes
while ((running)); do
  sleep 0.2 || true # A signal may end it.
  for i in "${!pids[@]}"; do
    if [[ ${pids[i]} ]] && ! kill -0 "${pids[i]}" 2>/dev/null; then
      code=0
      wait "${pids[i]}" 2>/dev/null || code=$?
      pids[i]='' running=$((running - 1))
      if ((code && !failure)); then
        failure=$code deadline=$((SECONDS + patience))
        echo "local.sh: process $i has ended with exit code $code" >&2
      fi
    fi
  done
  if [[ $deadline ]] && ((running && SECONDS >= deadline)); then
    echo "local.sh: the others are still there after $patience s and are killed" >&2
    signal_all KILL
    deadline=''
  fi
done
if ((${#shows[@]})); then
  wait "${shows[@]}" || true
fi
exit "$failure"
