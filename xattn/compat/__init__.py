"""Other libraries' names, signatures and return conventions, on any backend of xattn: a port by changing an import.

Each is imported by name, none by `import xattn`. docs/migrate.md has the calls of xattn itself.
"""
