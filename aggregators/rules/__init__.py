"""Rules: how several updates become one."""
