"""The backend `nki`: AWS's NKI library."""
