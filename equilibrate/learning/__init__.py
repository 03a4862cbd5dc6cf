"""One rank's work on one batch of rollouts."""
