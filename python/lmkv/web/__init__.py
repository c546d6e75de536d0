"""The web process: REST, metrics and events; a client of its controller like any other."""
