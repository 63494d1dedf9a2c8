#!/usr/bin/env bash
# Every agent tells agent 1 its number of processes; agent 1 adds them up. Payload: the number of agents.
set -euo pipefail
PATH=$PATH:/coordination

bus() { message-bus.sh --swarm "$CFN_SWARM_ID" "$@"; }

agents=$(cat)
if [[ $CFN_AGENT_ID != agent-1 ]]; then
  processes=(/proc/[0-9]*)
  bus send "$CFN_AGENT_ID" agent-1 processes "${#processes[@]}"
  exit
fi
heard=0 sum=0
while ((heard < agents - 1)); do
  messages=$(bus recv agent-1)
  while read -r _ _ type payload; do
    [[ $type == processes ]] || continue
    sum=$((sum + $(base64 -d <<<"$payload"))) heard=$((heard + 1))
  done <<<"$messages"
  sleep 0.1
done
echo "$heard agents, $sum processes"
