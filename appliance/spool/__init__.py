"""The spool: the only writer of objects and of the ledger (design, Spool)."""
