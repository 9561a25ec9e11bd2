"""Files that are complete or absent, and the identity of what their numbers are of."""
