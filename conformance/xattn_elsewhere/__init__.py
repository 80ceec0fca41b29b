"""A vendor's code where the vendor's hardware is not: the vendor's own kernels, unmodified, by an interpreter, an
emulation or on another GPU, and stand-ins for kernels that run nowhere else.

A folder is a vendor's package. A module here is loaded in a worker process by a profile's `executor`, and changes that
process alone. A report says "vendor code elsewhere" or "stand-in" of what ran so, never "hardware".
"""
