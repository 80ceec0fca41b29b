"""`xattn.write_kv`: new keys and values into slots of a paged cache."""
