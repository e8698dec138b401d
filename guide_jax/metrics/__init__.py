"""Measures of forgetting, by judges that took no part in the loss."""
