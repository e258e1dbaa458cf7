"""What the programs share at their edge: command lines, logs, and the Kubernetes API.

No decision is made here. The dataplane uses `lbless_edge.process` alone: it knows no Kubernetes.
"""
