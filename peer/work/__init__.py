"""Assignments of a peer, from the offer to the receipt, and its worker processes."""
