"""The one measuring method of `xattn bench` and of benchmarks/: time, memory, and the copies that a call makes."""

from xattn.measure.memory import Memory, memory
from xattn.measure.operations import Operations, operations
from xattn.measure.timing import Timing, alternate, once

__all__ = ["Memory", "Operations", "Timing", "alternate", "memory", "once", "operations"]
