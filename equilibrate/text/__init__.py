"""Conversations to token ids and back: the only place that touches a tokenizer or template."""
