"""The coordinator's own worker processes, in which tasks' code runs."""
