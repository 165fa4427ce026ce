"""Puts the coordinator's parts together."""
