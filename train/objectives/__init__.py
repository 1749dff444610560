"""What is minimised: cross-entropy, z-loss and the load balance of experts."""
