#!/usr/bin/env bash
# Talk to the engine from a shell: one request to the conductor's socket, no interpreter started.
set -euo pipefail
export LC_ALL=C

readonly EXIT_USAGE=2 EXIT_NOT_RUNNING=3
readonly MAX_ANSWER_WAIT_S=20 # for everything but a coordination

usage() {
  cat <<'TEXT'
usage: message-bus.sh [--json] [--swarm ID] COMMAND

  init N                             make a swarm of N agents and keep it
  broadcast TYPE[:BODY]              send to every agent; prints sent= and delivered=
  status                             one line for each agent: name, state, inbox, what it acknowledged
  coordinate N TASK_ID               run a task on N agents; the payload, if any, from --payload-file
  send FROM TO TYPE [PAYLOAD]        put a message into an agent's inbox
  recv AGENT                         print and remove them: NUMBER FROM TYPE [PAYLOAD in base64]
  shutdown                           end the swarm; messages that nobody took are counted

  --json            print the conductor's answer as one JSON object
  --swarm ID        name a swarm; else the newest one is meant, and coordinate makes one of its own
  --payload-file F  what each agent gets on standard input (coordinate), `-` for standard input
  --deadline-ms N   for the acknowledgements (coordinate)

exit codes: 0 done, 1 failed, 2 usage, 3 the engine is not running, 4 not all delivered,
5 refused by a bound or a rule, 6 damaged record
TEXT
}

fail() { # CODE MESSAGE
  printf 'message-bus.sh: %s\n' "$2" >&2
  exit "$1"
}

here() { # the folder of this script, through every symbolic link
  local path=${BASH_SOURCE[0]}
  path=$(readlink -f -- "$path")
  printf '%s' "${path%/*}"
}

check_id() { # KIND VALUE
  [[ ${#2} -le 128 ]] || fail $EXIT_USAGE "$1 id of ${#2} characters: at most 128 are allowed"
  [[ $2 =~ ^[A-Za-z0-9][A-Za-z0-9._:-]*$ && $2 != *..* ]] || fail $EXIT_USAGE \
    "$1 id $(printf '%q' "$2") is refused: a letter or digit first, then letters, digits, '.', '_', ':' and '-' are allowed, without '..'"
}

check_number() { # WHAT VALUE
  [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || fail $EXIT_USAGE "$1: $(printf '%q' "$2") is refused; a whole number from 1 is needed"
}

need() { # FOUND AT_LEAST AT_MOST
  (($1 >= $2 && $1 <= $3)) || { usage >&2; exit $EXIT_USAGE; }
}

encode() { # TEXT -> base64 on one line
  [[ -z $1 ]] || printf '%s' "$1" | base64 -w 0
}

ask() { # REQUEST_FIELDS WAIT_S: one request, its answer on standard output, its code as exit code
  local answer code lines format=text
  [[ -z $json ]] || format=json
  [[ -S $CFN_CONDUCTOR_SOCKET ]] ||
    fail $EXIT_NOT_RUNNING "the conductor does not answer at $CFN_CONDUCTOR_SOCKET: no socket there"
  answer=$(printf '{%s%s,"format":"%s"}\n' "$1" "$swarm" "$format" |
    socat -t "$2" -T "$2" - "UNIX-CONNECT:$CFN_CONDUCTOR_SOCKET" 2>/dev/null) || true
  [[ -n $answer ]] || fail $EXIT_NOT_RUNNING "the conductor does not answer at $CFN_CONDUCTOR_SOCKET"
  if [[ -n $json ]]; then
    mapfile -t lines <<<"$answer" # the last one is the final answer; a pattern would take seconds
    answer=${lines[-1]}
    [[ ! $answer =~ ^\{\"state\":\"[a-z]+\",\"task_id\": ]] || fail $EXIT_NOT_RUNNING \
      "the conductor ended before it answered; the same command with the same id asks for it again"
    printf '%s\n' "$answer"
    [[ ! $answer =~ ^\{\"error\":.*\"exit_code\":([0-9]+) ]] || exit "${BASH_REMATCH[1]}"
    [[ ! $answer =~ \"delivery_rate_pct\":([0-9.]+) || ${BASH_REMATCH[1]} == 100.0 ]] || exit 4
    return 0
  fi
  code=${answer%%$'\n'*}
  [[ $code =~ ^exit\ ([0-9]{1,3})$ ]] || fail 1 "the conductor's answer makes no sense: $(printf '%q' "$code")"
  code=${BASH_REMATCH[1]}
  answer=${answer#*$'\n'}
  [[ $answer != "exit $code" ]] || answer=""
  if ((code == 0 || code == 4)); then
    [[ -z $answer ]] || printf '%s\n' "$answer"
  else
    printf 'message-bus.sh: %s\n' "$answer" >&2
  fi
  exit "$code"
}

json="" swarm="" payload_file="" deadline="" arguments=()
while (($#)); do
  case $1 in
    --json) json=1 ;;
    --swarm | --payload-file | --deadline-ms)
      (($# >= 2)) || fail $EXIT_USAGE "$1 needs a value"
      case $1 in
        --swarm) check_id swarm "$2" && swarm=",\"swarm_id\":\"$2\"" ;;
        --payload-file) payload_file=$2 ;;
        --deadline-ms) check_number --deadline-ms "$2" && deadline=",\"deadline_ms\":$2" ;;
      esac
      shift
      ;;
    -h | --help) usage && exit 0 ;;
    --) shift && arguments+=("$@") && break ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
set -- "${arguments[@]:+${arguments[@]}}"
command=${1:-}
(($# == 0)) || shift

# What is malformed is said even where no engine runs.
case $command in
  init)
    need $# 1 1
    check_number agents "$1"
    fields="\"verb\":\"init\",\"agents\":$1"
    ;;
  broadcast)
    need $# 1 1
    type=${1%%:*} body=""
    [[ $1 != *:* ]] || body=${1#*:}
    check_id "message type" "$type"
    fields="\"verb\":\"broadcast\",\"type\":\"$type\",\"body_b64\":\"$(encode "$body")\""
    ;;
  status)
    need $# 0 0
    fields='"verb":"status"'
    ;;
  coordinate)
    need $# 2 2
    check_number agents "$1"
    check_id task "$2"
    payload=""
    if [[ -n $payload_file ]]; then
      [[ $payload_file == - || -r $payload_file ]] || fail $EXIT_USAGE "$payload_file cannot be read"
      payload=$(base64 -w 0 -- "$payload_file")
    fi
    fields="\"verb\":\"coordinate\",\"agents\":$1,\"task_id\":\"$2\",\"payload_b64\":\"$payload\"$deadline"
    ;;
  send)
    need $# 3 4
    check_id agent "$1"
    check_id agent "$2"
    check_id "message type" "$3"
    fields="\"verb\":\"send\",\"from\":\"$1\",\"to\":\"$2\",\"type\":\"$3\",\"payload_b64\":\"$(encode "${4:-}")\""
    ;;
  recv)
    need $# 1 1
    check_id agent "$1"
    fields="\"verb\":\"recv\",\"agent\":\"$1\""
    ;;
  shutdown)
    need $# 0 0
    fields='"verb":"shutdown"'
    ;;
  "")
    usage >&2
    exit $EXIT_USAGE
    ;;
  *) fail $EXIT_USAGE "unknown command $(printf '%q' "$command"); --help lists them" ;;
esac

# shellcheck source=engine/bin/coordination-config.sh
source "$(here)/coordination-config.sh"
wait_s=$MAX_ANSWER_WAIT_S
if [[ $command == coordinate ]]; then # silence that long is a conductor that hangs, not a slow agent
  wait_s=$((MAX_ANSWER_WAIT_S + (CFN_COORDINATION_DEADLINE_TIME + CFN_AGENT_TIMEOUT_TIME) / 1000))
fi
ask "$fields" "$wait_s"
