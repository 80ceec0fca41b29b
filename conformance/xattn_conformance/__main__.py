"""`python -m xattn_conformance`."""

from xattn_conformance.cli import main

main()
