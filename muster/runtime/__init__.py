"""What every process of Muster needs of its machine: logs, clock, cores, randomness, failpoints."""
