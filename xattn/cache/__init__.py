"""Caches of keys and values: padded (`StaticKVCache`) and paged (`PagedKVCache`)."""

from xattn.cache.paged import PagedKVCache as PagedKVCache
from xattn.cache.static import StaticKVCache as StaticKVCache
from xattn.plugin.storage import PagedBatch as PagedBatch

__all__ = ["PagedBatch", "PagedKVCache", "StaticKVCache"]
