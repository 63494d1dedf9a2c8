"""The fault campaign (__main__.py)."""
