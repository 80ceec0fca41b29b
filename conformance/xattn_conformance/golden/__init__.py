"""Golden results: two oracles, stored anchors, and their verification."""
