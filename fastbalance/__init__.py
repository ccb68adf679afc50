"""fastbalance."""
