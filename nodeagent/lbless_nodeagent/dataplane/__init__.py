"""The dataplane: from the state directory's files to the kernel, and back what is in it. No Kubernetes."""
