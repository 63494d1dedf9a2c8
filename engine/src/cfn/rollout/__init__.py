"""Where a rollout stands: what may start, what is due, what is to be escalated, how it ended.

Decisions are pure functions over the ledger's records, with the time passed in.
"""
