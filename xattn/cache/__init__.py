"""Caches of keys and values: one tensor for a batch that grows together, or pages that sequences share."""

from xattn.cache.paged import PagedKVCache as PagedKVCache
from xattn.cache.static import StaticKVCache as StaticKVCache
