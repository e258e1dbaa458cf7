"""The nftables engine: rules for groups of shared addresses, ownership as set elements.

Needs Linux 5.16 and libnftables. `engine` is the door; `rules` is where to read what the kernel is told.
"""
