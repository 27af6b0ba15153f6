"""Training the demo weights, and anybody's own."""
