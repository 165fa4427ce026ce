"""Updates on their way in: what is arriving, room for it, and what is checked once it is there."""
