"""A vendor's own kernels, unmodified, run where the vendor's hardware is not. Each module here is loaded in a worker
process by a profile's `executor`, and changes that process alone."""
