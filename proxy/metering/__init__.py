"""What happened: the bytes watched, the tokens counted, the cost worked out, the rows queued."""
