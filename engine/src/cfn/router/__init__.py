"""The router: the entry for tasks, which splits traffic between V1 and V2."""
