"""`python -m xattn_conformance.running` is a worker process: see `worker.py`."""

from __future__ import annotations

from xattn_conformance.startup import importing

with importing():
    from xattn_conformance.running.worker import main

if __name__ == "__main__":
    main()
