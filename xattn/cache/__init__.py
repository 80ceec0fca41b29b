"""Caches of keys and values: padded (`StaticKVCache`), paged (`PagedKVCache`), and pages in the orders that vendors'
kernels want (`FormattedCache`)."""

from xattn.cache.paged import PagedKVCache as PagedKVCache
from xattn.cache.static import StaticKVCache as StaticKVCache
from xattn.plugin.formats import FormattedCache as FormattedCache
from xattn.plugin.storage import PagedBatch as PagedBatch

__all__ = ["FormattedCache", "PagedBatch", "PagedKVCache", "StaticKVCache"]
