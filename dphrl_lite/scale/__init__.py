"""What a large model takes: memory, four bits, low rank, cost. Nothing is trained here."""
