"""Runs specs on all ranks of torchrun: `rank_script.py NAME=SPEC...`; each store is the folder NAME in the working folder.

With NAME `wrong` the ranks add up gradients in another order than that of shares.
"""

from __future__ import annotations

import sys
from typing import Any

from selfloop.commands.launch import follow
from selfloop.ranks import LED, Ranks
from selfloop.result import run


class Unordered(Ranks):
    """Ranks whose gradients arrive in reverse order."""

    is_wrong = False

    def run(self, operation: str, *arguments: Any) -> None:
        super().run(operation, *arguments)
        if operation == "all_to_all_single" and Unordered.is_wrong:
            received = arguments[0].view(self.count, -1)
            received.copy_(received.flip(0))


if __name__ == "__main__":
    ranks = Unordered.join()
    specs = [argument.split("=") for argument in sys.argv[1:]]
    LED.set(ranks)
    for name, spec in specs:
        Unordered.is_wrong = name == "wrong"
        if ranks.rank:
            follow(ranks)
        else:
            run(spec, name, threads=1)
            ranks.tell(None)
