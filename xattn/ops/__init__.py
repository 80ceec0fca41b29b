"""What can be called: a room an op, and the table of ops."""
