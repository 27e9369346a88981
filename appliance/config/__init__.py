"""Configuration: `settings` is the table, `load` reads and checks a file."""
