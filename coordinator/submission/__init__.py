"""Checks of a run spec when a run is submitted."""
