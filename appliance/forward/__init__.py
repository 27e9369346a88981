"""Forward: every object goes where it was routed, for as long as it takes, and no destination waits for another."""
