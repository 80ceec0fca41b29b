"""The ops of the contract. A new op is a package here and a line in registry.py."""
