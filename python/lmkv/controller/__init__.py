"""The controller: who is there (registry), who holds what (placement), and the two sockets."""
