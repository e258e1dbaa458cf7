"""The agent of a node: sync (Kubernetes ↔ state directory) and dataplane (state directory ↔ kernel).

The two never import each other; what both need is in `lbless_nodeagent.files`.
"""
