"""The road of an update and of a model version, whoever carries it: payloads, admission, decoding, aggregation, the
server's step, the way down. Takes files, tensors and values; knows of no database, socket, session or run's state."""
