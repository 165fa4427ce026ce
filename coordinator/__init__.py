"""The coordinator: opens rounds, admits and aggregates updates, serves versions, and remembers all of it."""
