"""What runs under the method: log-probs, caches, checkpoints, several processes, trackers. Knows no loss and no method."""
