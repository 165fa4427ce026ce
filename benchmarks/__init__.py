"""Measurements of speed, traffic and accuracy."""
