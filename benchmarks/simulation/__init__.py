"""A model of the RLHF loop on GPUs: costs of its parts, events of its schedule, published rows."""
