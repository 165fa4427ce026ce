"""The commands, one module for each noun. Bare verbs act on this machine, nouns on the federation."""
