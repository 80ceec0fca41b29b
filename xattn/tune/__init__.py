"""`xattn tune`: calls are measured on every backend that can serve them, and their times written down.

Built on the public functions. What reads the tables is xattn.dispatch.tables.
"""
