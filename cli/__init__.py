"""The one command, `muster`: a thin face over the rest, which imports what a command needs when it runs."""
