"""The report of a stage or of the whole rollout: one HTML file that needs nothing else, and JSON."""
