"""lbless-sync: the Kubernetes half of a node. The API's wishes go to files, what dataplane did to the API.

It has API credentials and touches no kernel; with dataplane it shares nothing but the state directory.
"""
