"""What persons ask of a running gateway: `control` carries it to the keeper, `verbs` does it."""
