"""The demonstration: one address on three nodes, from `kubectl apply` to packets, on this machine alone."""
