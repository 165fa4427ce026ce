"""A peer's line to its coordinator: calls, and the session in which offers come and reports go."""
