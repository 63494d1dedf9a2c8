"""The judge: pure functions from a request (criteria and evidence) to a verdict."""
