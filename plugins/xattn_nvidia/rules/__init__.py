"""What is wrong in the kernels that the plugin calls, as data: where to read about it, and what xattn does.

Each is named once here and by that name where a test proves the guard.
"""

from __future__ import annotations

from xattn_nvidia.rules import cudnn, fa3, fa4
from xattn_nvidia.rules.rule import Rule

__all__ = ["RULES", "Rule"]

RULES: dict[str, Rule] = {rule.name: rule for part in (fa3, fa4, cudnn) for rule in part.RULES}
