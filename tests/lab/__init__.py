"""The laboratory: a LAN of namespaces and a real control plane, shared by the demo, tests and benchmarks.

It owns what stands in for a site (cables, hosts, clients, an API server) and knows nothing of lbless.
"""
