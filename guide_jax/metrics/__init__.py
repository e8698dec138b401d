"""Measures of forgetting, by judges that are not part of the loss."""
