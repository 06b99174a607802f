"""Who may serve a request: a plan of targets, and a key for each. Pure state, no I/O."""
