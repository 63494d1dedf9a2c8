"""The collector: one sample of the engine, the router and the host at a time."""
