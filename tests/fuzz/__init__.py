"""Bytes of any kind at everything that listens or reads: `make fuzz MINUTES=10`."""
