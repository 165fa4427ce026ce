"""What a peer remembers over restarts: assignments and state arrays."""
