#!/usr/bin/python3
"""Agent 1 asks every other agent for its load and adds up the answers. Payload: the number of agents."""

import os
import sys

sys.path.append("/opt/cfn/current/lib")

from cfn.agent import Bus

agents = int(sys.stdin.read())
with Bus() as bus:
    if bus.agent == "agent-1":
        others = [f"agent-{number}" for number in range(2, agents + 1)]
        loads = [float(bus.ask(other, "load", timeout_s=20).payload) for other in others]
        bus.broadcast("done")
        print(f"{len(loads)} answers, load {sum(loads):.2f}")
    else:
        for message in bus:
            if message.is_question:
                bus.answer(message, str(os.getloadavg()[0]).encode())
            if message.type == "done":
                break
