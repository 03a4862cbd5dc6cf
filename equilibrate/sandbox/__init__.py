"""The built-in world: a small language in which helpfulness and harm can be measured exactly."""
