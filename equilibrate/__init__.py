"""Constrained RLHF on Ray: helpfulness is a reward, harm is a cost with a budget."""

__version__ = "0.1.0"
