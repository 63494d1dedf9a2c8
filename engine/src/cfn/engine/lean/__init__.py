"""What the spawner and its workers are made of, and what they share with the other daemons.

A fork copies the page tables of all that a process has imported, and a child pays for each page it
touches: the spawner's cost per worker doubles with the usual imports. So these modules import only
what is compiled into the interpreter, and no `enum`, `dataclasses`, `json`, `typing`, `pathlib`,
`socket`, `signal` or `os`. A test holds the list of modules that a spawner has loaded.
"""
