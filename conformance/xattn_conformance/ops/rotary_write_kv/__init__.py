"""`xattn.rotary_write_kv`: its cases, inputs, and what the queries and caches must be after the call."""
