"""`python -m xattn`: the same as `xattn`."""

from xattn.cli import main

if __name__ == "__main__":
    main()
