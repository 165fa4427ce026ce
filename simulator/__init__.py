"""Muster without machines: tools for users' own tests."""

from muster.runtime.installation import check_together

# A program of a user's own, and what lies beside it, come first on sys.path.
check_together(("aggregators", "compressors", "coordinator", "exchange", "methods", "peer", "protos"))
