"""For tests of code that calls xattn, and of plugins."""

from xattn.testing.process import fresh as fresh
