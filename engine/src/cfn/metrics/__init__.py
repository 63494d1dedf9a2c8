"""From the files of one host to evidence: small, mergeable, and honest about what was damaged."""
