"""The limited child process: the only place where data sets are looked into (I8)."""
