"""AWS's defects and limits as data."""
