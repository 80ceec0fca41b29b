"""How a call finds its kernel: the choice of a backend, the registry, selection, plans. Knows no op."""
