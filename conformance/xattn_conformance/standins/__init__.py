"""Stand-ins: vendors' interfaces without their kernels, written from their sources and documentation, defects included.
What runs over one is labelled "stand-in", never as hardware."""
