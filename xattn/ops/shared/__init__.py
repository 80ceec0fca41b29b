"""What several ops have in common: checks of arguments, and the parts of their requests."""
