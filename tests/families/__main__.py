"""docs/families.md: what each family of models does in each way of use, by xattn beside eager attention.

make families              finds it all anew, some minutes, and fails where the page says something else
make families CHECK=       writes the page
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

from families.models import FAMILIES
from families.page import PAGE, page, row, same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the page instead of writing it")
    parser.add_argument("--jobs", type=int, default=2, help="processes [%(default)s]")
    arguments = parser.parse_args()
    # New processes: torch.compile and continuous batching have threads, which a fork would lose.
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        made = page(list(pool.map(row, FAMILIES)))
    if not arguments.check:
        PAGE.write_text(made)
        return 0
    if same(made, PAGE.read_text()):
        return 0
    print(made, f"{PAGE} says something else. After a change that is right: make families CHECK=", sep="\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
