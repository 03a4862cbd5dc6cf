"""What a run will need of its machines, before it starts."""
