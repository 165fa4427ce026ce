"""Methods that plug into Muster and change none of its files."""
