"""The tick: heartbeats and lease, in a process that nothing delays. Small imports, and nothing that blocks."""
