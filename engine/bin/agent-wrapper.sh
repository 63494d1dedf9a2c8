#!/usr/bin/env bash
# Let any program be an agent of a swarm: agent-wrapper.sh [--swarm ID] AGENT_ID -- COMMAND [ARGUMENT ...]
set -euo pipefail
export LC_ALL=C

readonly EXIT_USAGE=2 EXIT_NOT_RUNNING=3
readonly GRACE_S=2 # between SIGTERM and SIGKILL for a command that is out of time

usage() {
  cat <<'TEXT'
usage: agent-wrapper.sh [--swarm ID] AGENT_ID -- COMMAND [ARGUMENT ...]

Joins a swarm (the newest, or the one named) as AGENT_ID and runs COMMAND for each task, with
CFN_TASK_ID, CFN_AGENT_ID, CFN_SWARM_ID and CFN_TEAM in its environment and the payload on its
standard input. Its standard output (bounded) and exit code are the result. Ends with exit code 0
when the swarm ends.

exit codes: 0 the swarm ended, 2 usage, 3 the engine is not running, 5 refused
TEXT
}

fail() { # CODE MESSAGE
  printf 'agent-wrapper.sh: %s\n' "$2" >&2
  exit "$1"
}

check_id() { # KIND VALUE
  [[ ${#2} -le 128 && $2 =~ ^[A-Za-z0-9][A-Za-z0-9._:-]*$ && $2 != *..* ]] ||
    fail $EXIT_USAGE "$1 id $(printf '%q' "${2:0:140}") is refused: 1 to 128 letters, digits, '.', '_', ':' and '-', a letter or digit first, without '..'"
}

run_task() { # runs $task as it was offered; sets code, output, timed_out
  local seconds started=$SECONDS
  printf -v seconds '%d.%03d' $((timeout_ms / 1000)) $((timeout_ms % 1000))
  [[ $payload != - ]] || payload=""
  code=0 timed_out=false
  # `timeout` gives the command a process group of its own, and signals all of it.
  output=$(
    set +e
    printf '%s' "$payload" | base64 -d |
      CFN_TASK_ID=$task CFN_AGENT_ID=$agent CFN_SWARM_ID=$of_swarm CFN_TEAM=$team \
        timeout --kill-after=$GRACE_S "$seconds" "${command[@]}" | { head -c "$limit" && cat >/dev/null; } | base64 -w 0
    printf ' %s' "${PIPESTATUS[2]}"
  )
  code=${output##* } output=${output% *}
  if ((code == 124 || (code == 137 && SECONDS - started >= ${seconds%.*}))); then
    timed_out=true
  fi
}

swarm="" agent=""
while (($#)); do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --swarm)
      (($# >= 2)) || fail $EXIT_USAGE "--swarm needs a value"
      check_id swarm "$2"
      swarm=",\"swarm_id\":\"$2\""
      shift
      ;;
    --) shift && break ;;
    *)
      [[ -z $agent ]] || fail $EXIT_USAGE "one AGENT_ID, then -- and the command"
      agent=$1
      check_id agent "$agent"
      ;;
  esac
  shift
done
[[ -n $agent && $# -ge 1 ]] || { usage >&2; exit $EXIT_USAGE; }
command=("$@")

self=$(readlink -f -- "${BASH_SOURCE[0]}")
# shellcheck source=engine/bin/coordination-config.sh
source "${self%/*}/coordination-config.sh"
[[ -S $CFN_CONDUCTOR_SOCKET ]] || fail $EXIT_NOT_RUNNING "the conductor does not answer at $CFN_CONDUCTOR_SOCKET"

coproc CONDUCTOR { exec socat - "UNIX-CONNECT:$CFN_CONDUCTOR_SOCKET" 2>/dev/null; }
socat_pid=$CONDUCTOR_PID
exec {answers}<&"${CONDUCTOR[0]}" {requests}>&"${CONDUCTOR[1]}"
trap 'kill "$socat_pid" 2>/dev/null || true' EXIT
trap 'exit 0' TERM INT
trap '' PIPE

say() { printf '{%s,"format":"text"}\n' "$1" >&"$requests" || true; }

say "\"verb\":\"join\",\"agent\":\"$agent\"$swarm"
joined="" error_code=""
declare -A offers=() # task: epoch, swarm, team, timeout, bound, payload
while IFS= read -r -u "$answers" line; do
  read -r -a words <<<"$line"
  case ${words[0]:-} in
    joined) joined=1 && printf 'joined %s as %s\n' "${words[2]}" "$agent" ;;
    task)
      offers[${words[1]}]=${words[*]:2}
      say "\"verb\":\"task\",\"say\":\"claim\",\"task_id\":\"${words[1]}\",\"epoch\":${words[2]}"
      ;;
    go)
      task=${words[1]}
      read -r epoch of_swarm team timeout_ms limit payload <<<"${offers[$task]}"
      unset "offers[$task]"
      run_task
      say "\"verb\":\"task\",\"say\":\"result\",\"task_id\":\"$task\",\"epoch\":$epoch,\"exit_code\":$code,\"timed_out\":$timed_out,\"output_b64\":\"$output\""
      ;;
    skip) unset "offers[${words[1]}]" ;;
    exit) error_code=${words[1]} ;;
    *) [[ -z $error_code ]] || fail "$error_code" "$line" ;;
  esac
done
[[ -n $joined ]] || fail $EXIT_NOT_RUNNING "the conductor does not answer at $CFN_CONDUCTOR_SOCKET"
