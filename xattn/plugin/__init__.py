"""What a vendor writes a backend against."""
