"""The command line: `main` is the entry, one module per family of commands, `services` opens and builds what they need."""
