"""What one process may spend of a budget: arithmetic, without a clock and without a database."""
