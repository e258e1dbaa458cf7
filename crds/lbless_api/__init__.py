"""The contract between lbless's parts: types, bucket sets, hashes, successors, MACs, state files.

Pure: imports the standard library alone, opens nothing, sends nothing.
"""

GROUP = "lbless.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

WEIGHT_ANNOTATION = f"{GROUP}/weight"
EXCLUDE_LABEL = "node.kubernetes.io/exclude-from-external-load-balancers"
AGENT_LEASE_PREFIX = "lbless-node-"
"""A node's agent renews the Lease of this prefix + the node's name, in lbless's namespace."""

AGENT_LEASE_RENEW_SECONDS = 10
AGENT_LEASE_STALE_SECONDS = 40
OBSERVED_STALE_SECONDS = 6
"""sync renews the node's Lease only while dataplane's observed.json is younger than this."""

MAX_LISTED = 64
"""Entries at most in the `pending`, `failures` and `drains` lists of a ClusterIPNode."""
