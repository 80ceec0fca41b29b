"""What strangers raise, as text fit for a report."""

from __future__ import annotations

import os
import sys
import traceback

from xattn.dispatch.failures import is_plugins, raised

__all__ = ["is_plugins", "raised", "trace"]


def trace(error: BaseException) -> str:
    """The traceback, with files named from the folder that they were imported from: a report names no folder of the
    machine that it was made on."""
    folders = sorted({os.path.abspath(path) for path in (*sys.path, os.getcwd(), sys.prefix)}, key=len, reverse=True)
    text = "".join(traceback.format_exception(error))
    for folder in folders:
        if folder != os.sep:
            text = text.replace(folder + os.sep, "")
    return text.rstrip()
