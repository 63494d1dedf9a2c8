"""What an operator does to a running host: coordinators, trials, capacity, soak and stress.

Decisions are pure functions (coordinators, checks, stress_plan); the rest asks the daemons and measures.
"""
