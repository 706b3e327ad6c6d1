"""What commands may be told, and every mistake in it at once."""
