"""Muster without machines: tools for users' own tests."""
