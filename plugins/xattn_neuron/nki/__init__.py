"""AWS's NKI library."""
