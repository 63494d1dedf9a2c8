"""The ledger: what was done and decided, in a chain of records that shows any change."""
