#!/usr/bin/env bash
# Take a coordinator's teams away and give them to others: failover.sh [--drain | --resume] COORDINATOR_ID
set -euo pipefail
export LC_ALL=C

readonly EXIT_USAGE=2 EXIT_NOT_RUNNING=3

usage() {
  cat <<'TEXT'
usage: failover.sh [--json] [--drain | --resume] COORDINATOR_ID

Without an option the coordinator is ended (it may hang), and its workers go to the others; what runs goes
on. systemd starts it again, and its teams come home.

  --drain   for maintenance: its teams move, and it gets no more until --resume
  --resume  the end of a drain: its teams come home

exit codes: 0 done, 2 usage, 3 the engine is not running, 5 no such coordinator
TEXT
}

fail() { # CODE MESSAGE
  printf 'failover.sh: %s\n' "$2" >&2
  exit "$1"
}

how=dead format=text number=""
while (($#)); do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --json) format=json ;;
    --drain) how=drain ;;
    --resume) how=resume ;;
    *)
      [[ -z $number && $1 =~ ^[1-9][0-9]?$ ]] || { usage >&2; exit $EXIT_USAGE; }
      number=$1
      ;;
  esac
  shift
done
[[ -n $number ]] || { usage >&2; exit $EXIT_USAGE; }

self=$(readlink -f -- "${BASH_SOURCE[0]}")
# shellcheck source=engine/bin/coordination-config.sh
source "${self%/*}/coordination-config.sh"
[[ -S $CFN_CONDUCTOR_SOCKET ]] || fail $EXIT_NOT_RUNNING "the conductor does not answer at $CFN_CONDUCTOR_SOCKET"
answer=$(printf '{"verb":"failover","coordinator":%d,"how":"%s","format":"%s"}\n' "$number" "$how" "$format" |
  socat -t 20 -T 20 - "UNIX-CONNECT:$CFN_CONDUCTOR_SOCKET" 2>/dev/null) || true
[[ -n $answer ]] || fail $EXIT_NOT_RUNNING "the conductor does not answer at $CFN_CONDUCTOR_SOCKET"
if [[ $format == json ]]; then
  printf '%s\n' "$answer"
  [[ ! $answer =~ \"exit_code\":([0-9]+) ]] || exit "${BASH_REMATCH[1]}"
  exit 0
fi
code=${answer%%$'\n'*} answer=${answer#*$'\n'}
[[ $code =~ ^exit\ ([0-9]{1,3})$ ]] || fail 1 "the conductor's answer makes no sense: $(printf '%q' "$code")"
[[ ${BASH_REMATCH[1]} == 0 ]] || fail "${BASH_REMATCH[1]}" "$answer"
printf '%s\n' "$answer"
