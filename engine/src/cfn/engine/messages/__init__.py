"""Messages between agents while they work: stored in tmpfs, bounded (docs/reference/messages.md)."""
