"""What makes a run durable: retry, checkpoints, circuit breakers, and the record that it is resumed from."""
