"""The web process: REST, metrics and events for people and their tools; a client of a controller."""
