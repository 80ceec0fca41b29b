"""Adapters that let other libraries' models call xattn. Each is imported by name, none by `import xattn`."""
