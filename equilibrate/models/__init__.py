"""Torch modules and the folders they come from."""
