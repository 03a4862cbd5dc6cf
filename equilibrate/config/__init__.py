"""Settings as frozen trees, checked once at the door."""
