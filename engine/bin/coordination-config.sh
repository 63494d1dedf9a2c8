# shellcheck shell=bash
# Sourced: the configuration in force, from what the engine rendered of /etc/cfn/config.sh.
#
#   source /coordination/coordination-config.sh
#
# Sets CFN_COORDINATION_VERSION, CFN_TOPOLOGY, CFN_MAX_AGENTS, ... and CFN_CONDUCTOR_SOCKET.
# Returns 3 when the engine never ran here since boot, 2 when the file is damaged; says which.
# The file is read line by line and never executed.

_cfn_read_configuration() {
  local file="${CFN_ROOT:-}/run/cfn/env" line name missing=""
  if [[ ! -e $file ]]; then
    printf '%s: no configuration at %s: the engine is not running\n' "${0##*/}" "$file" >&2
    return 3
  fi
  if [[ ! -r $file ]]; then
    printf '%s: %s may not be read by this user (group cfn may)\n' "${0##*/}" "$file" >&2
    return 3
  fi
  while IFS= read -r line || [[ -n $line ]]; do
    if [[ ! $line =~ ^(CFN_[A-Z0-9_]+)=\"([^\"\$\`\\]*)\"$ ]]; then
      printf '%s: %s: %q is not a line of the rendered configuration\n' "${0##*/}" "$file" "$line" >&2
      return 2
    fi
    printf -v "${BASH_REMATCH[1]}" '%s' "${BASH_REMATCH[2]}"
    export "${BASH_REMATCH[1]?}"
  done <"$file"
  for name in CFN_COORDINATION_VERSION CFN_TOPOLOGY CFN_MAX_AGENTS CFN_COORDINATION_DEADLINE_TIME \
    CFN_AGENT_TIMEOUT_TIME CFN_MAX_PAYLOAD; do
    [[ -n ${!name:-} ]] || missing+=" $name"
  done
  if [[ -n $missing ]]; then
    printf '%s: %s lacks%s\n' "${0##*/}" "$file" "$missing" >&2
    return 2
  fi
  for name in CFN_MAX_AGENTS CFN_COORDINATION_DEADLINE_TIME CFN_AGENT_TIMEOUT_TIME CFN_MAX_PAYLOAD; do
    if [[ ! ${!name} =~ ^[0-9]{1,12}$ ]]; then
      printf '%s: %s: %s=%q is not a number\n' "${0##*/}" "$file" "$name" "${!name}" >&2
      return 2
    fi
  done
  CFN_CONDUCTOR_SOCKET="${CFN_ROOT:-}/run/cfn/conductor.sock"
  export CFN_CONDUCTOR_SOCKET
}

_cfn_read_configuration
