"""aiter's own Triton kernels by Triton's interpreter, in this process: `make test-aiter`."""

import xattn_elsewhere.aiter.interpreter  # noqa: F401 - installs itself
