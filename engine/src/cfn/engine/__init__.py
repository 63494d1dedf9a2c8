"""The engine (V2): conductor, spawner, workers, and what they say to one another."""
