"""The operator: decides which node owns which buckets of each ClusterIP, and says so in its status.

Data moves one way: watches and LISTs → mailbox → state → eligibility → plan → status and Events.
"""
