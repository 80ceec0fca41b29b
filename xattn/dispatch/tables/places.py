"""Where tables lie: in the user's cache folder, or where XATTN_TABLES says, and in plugins that ship some."""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE, OFF = "XATTN_TABLES", "off"


def setting() -> str:
    """XATTN_TABLES: a table's file, a folder of tables, "off", or empty for the user's cache folder."""
    return os.environ.get(VARIABLE, "").strip()


def place() -> Path | None:
    """The file or folder of the user's own tables; None where there is none, or all are off."""
    if setting() == OFF:
        return None
    return Path(setting()).expanduser() if setting() else _cache_folder()


def user_files() -> list[Path]:
    """The user's own tables. Raises OSError where XATTN_TABLES names what cannot be read."""
    where = place()
    if where is None or (not setting() and not where.is_dir()):
        return []
    if where.is_dir():
        return sorted(where.glob("*.json"))
    if not where.exists():
        raise FileNotFoundError(f"{VARIABLE}: there is no file or folder {where}")
    return [where]


def _cache_folder() -> Path | None:
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home
        return None
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = home / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return root / "xattn" / "tables"
