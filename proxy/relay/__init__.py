"""The story of a request, from its first byte to its last."""
