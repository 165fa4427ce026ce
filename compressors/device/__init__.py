"""Codecs' arithmetic where a chunk lies, if that is not the CPU: plain torch, so that any device will do that has it.

What is here waits for no device: no value is asked for, no shape depends on one, and nothing crosses but bodies, what
a sparsifier sends, tables of a few bytes and indices that both ends derive. A body was checked on the host before it
comes here, since an index out of range would poison a CUDA process. Where arithmetic goes element by element, bodies
are those of the CPU to the byte.
"""
