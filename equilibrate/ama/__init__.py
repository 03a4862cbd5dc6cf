"""Adaptive message-wise alignment: which tokens of a response may move the policy."""
