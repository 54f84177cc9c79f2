"""`python -m selfloop`: the command line, alone or as one of the processes of torchrun."""

import os

from selfloop.commands.cli import main

if __name__ == "__main__":
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from selfloop.commands.launch import main_of_rank as main
    main()
