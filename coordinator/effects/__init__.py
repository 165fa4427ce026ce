"""What is done after a commit, such as an aggregation: idempotent, so that a restart does it again."""
