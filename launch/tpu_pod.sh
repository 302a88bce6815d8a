#!/usr/bin/env bash
# A TPU slice from its creation to its end. See launch/README.md.
# shellcheck disable=SC2016  # Single quotes: for the shells of the workers.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_pod.sh [-z ZONE] [-p PROJECT] NAME COMMAND

  create TYPE [FLAG...]  asks for a slice, such as v5litepod-256, and waits until it is there; flags
                         for `gcloud compute tpus queued-resources create`, such as --spot
  setup [DIRECTORY]      copies the checked-in files of this repository to all workers and installs
                         them there
  run COMMAND...         starts a command on all workers, in the background
  wait                   waits until it has ended everywhere, with its exit code
  stop                   sends SIGTERM: nvg_jax saves and exits
  logs DIRECTORY         fetches what the command has written, as DIRECTORY/<worker>.log
  status                 the state of the slice, and whether the command runs, by worker
  ssh [WORKER]           a shell on a worker (0)
  delete                 gives the slice back, with all on its disks

ZONE and PROJECT are those of gcloud's configuration unless given. $TPU_RUNTIME is the image of the
workers (by default the one of the type).
TEXT
}

flags=()
while getopts 'z:p:h' option; do
  case $option in
    z) flags+=("--zone=$OPTARG") ;;
    p) flags+=("--project=$OPTARG") ;;
    h) usage && exit ;;
    *) usage >&2 && exit 2 ;;
  esac
done
shift $((OPTIND - 1))
if (($# < 2)); then
  usage >&2
  exit 2
fi
name=$1 action=$2
shift 2

queued() { # A command about the request for the slice, which has the slice's name.
  gcloud compute tpus queued-resources "$1" "$name" "${flags[@]}" "${@:2}"
}

on_all() { # Runs a shell command on all workers at once, and fails if it fails on one.
  gcloud compute tpus tpu-vm ssh "$name" "${flags[@]}" --worker=all --command="$1" "${@:2}"
}

state() {
  queued describe --format='value(state.state)'
}

runtime() { # The image for a type of accelerator.
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create() {
  local type=$1 now
  queued create --node-id="$name" --accelerator-type="$type" \
    --runtime-version="${TPU_RUNTIME:-$(runtime "$type")}" "${@:2}"
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now in
      FAILED | SUSPENDING | SUSPENDED)
        echo "error: the request is $now: see 'status', then 'delete' and 'create' again" >&2
        return 1
        ;;
    esac
    echo "$(date +%T) $now"
    sleep 30
  done
  echo "$name is there"
}

setup() {
  local archive root
  root=$(git -C "${1:-.}" rev-parse --show-toplevel)
  archive=$(mktemp -d)/nvg_jax.tar.gz
  git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$name:nvg_jax.tar.gz" "${flags[@]}" --worker=all
  rm -r "$(dirname "$archive")"
  on_all 'set -e
    rm -rf nvg_jax && mkdir nvg_jax && tar -xzf nvg_jax.tar.gz -C nvg_jax
    command -v uv >/dev/null || python3 -m pip install --quiet --user uv
    export PATH="$HOME/.local/bin:$PATH"
    test -d venv || uv venv --quiet --python 3.12 venv
    uv pip install --quiet --python venv/bin/python -r nvg_jax/requirements-gcs.txt "jax[tpu]"'
}

run() {
  local command
  printf -v command '%q ' "$@"
  # A session of its own outlives the connection.
  on_all "set -e
    if test -e nvg.pid && kill -0 \$(cat nvg.pid) 2>/dev/null; then
      echo 'error: a command runs already: stop it first' >&2
      exit 1
    fi
    rm -f nvg.exit
    cat >nvg.sh <<'END_OF_SCRIPT'
cd ~/nvg_jax
export PATH=\"\$HOME/venv/bin:\$PATH\" PYTHONUNBUFFERED=1
$command &
echo \$! >~/nvg.pid
wait \$!
echo \$? >~/nvg.exit
END_OF_SCRIPT
    setsid nohup bash nvg.sh >nvg.log 2>&1 </dev/null &
    sleep 1"
}

status() {
  echo "$name: $(state)"
  on_all 'if test -e nvg.exit; then
      echo "$(hostname): ended with exit code $(cat nvg.exit)"
    elif test -e nvg.pid && kill -0 "$(cat nvg.pid)" 2>/dev/null; then
      echo "$(hostname): running; $(tail -n 1 nvg.log)"
    else
      echo "$(hostname): nothing runs"
    fi'
}

need() { # That an argument is there.
  if (($1 == 0)); then
    usage >&2
    exit 2
  fi
}

case $action in
  create) need $# && create "$@" ;;
  setup) setup "$@" ;;
  run) need $# && run "$@" ;;
  wait) on_all 'until test -e nvg.exit; do sleep 2; done; exit "$(cat nvg.exit)"' ;;
  stop) on_all 'kill -TERM "$(cat nvg.pid)"' ;;
  logs)
    need $#
    mkdir -p "$1"
    on_all 'cat nvg.log' --output-directory="$1"
    ;;
  status) status ;;
  ssh) gcloud compute tpus tpu-vm ssh "$name" "${flags[@]}" --worker="${1:-0}" ;;
  delete) queued delete --force --quiet ;;
  *)
    usage >&2
    exit 2
    ;;
esac
