"""Fine-grained data: which class a prompt belongs to, and how the classes are mixed."""
