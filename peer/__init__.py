"""A peer: trains on its own data as it is asked, and sends updates."""
