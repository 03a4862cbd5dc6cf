"""Losses of the models that are trained on labelled pairs and demonstrations."""
