"""Between messages and the coordinator's own values."""
