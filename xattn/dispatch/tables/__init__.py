"""Tables of measured times: what they hold, where they lie, which of them count here, and the order that follows.

Imported at the first plan of a process, never by `import xattn`.
"""
