"""Streams of coordinations and samples that never happened: weeks in seconds, for tests and for people.

They break the judge's own assumptions on purpose: bursts, errors that come in clusters, noise that
wanders, hosts that differ.
"""
