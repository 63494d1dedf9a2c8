"""The coordination engine (V2), the router that splits traffic, and the judge of a rollout."""

__version__ = "0.1.0"
