"""The tick process: heartbeats and leases of a node, in a process that nothing else delays."""
