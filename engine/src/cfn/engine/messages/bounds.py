"""How much of everything a hub's messages may take. Each bound is a key of the configuration."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageBounds:
    """The bounds in force, for one hub; what happens at each is in docs/reference/messages.md."""

    max_payload_bytes: int = 65_536
    """CFN_MAX_PAYLOAD, 0 to 131,072: refused."""
    max_inbox_messages: int = 1_000
    """CFN_MAX_INBOX, 1 to 1,000,000, of one agent: its senders are held back, then refused."""
    inbox_wait_ms: int = 1_000
    """CFN_INBOX_WAIT_TIME, 0 to 60,000: how long a full inbox from which nothing is taken holds back."""
    max_sender_rate_per_s: int = 50_000
    """CFN_MAX_SENDER_RATE, 1 to 10,000,000 messages a second of one agent: held back."""
    max_queued_messages: int = 200_000
    """CFN_MAX_QUEUED_MESSAGES, 1 to 10,000,000, in all inboxes of a hub: refused."""
    max_queued_bytes: int = 32 << 20
    """CFN_MAX_QUEUED_SIZE, 1 to 4,096 MB, in all inboxes of a hub: refused."""
