"""The database: what happened, and the questions asked of it."""
