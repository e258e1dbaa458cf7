"""The iptables engine: the old CLUSTERIP target where the kernel has it, else xt_cluster."""
