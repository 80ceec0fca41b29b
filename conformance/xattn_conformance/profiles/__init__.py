"""What a backend ships: the profile of its arithmetic and its waivers."""
