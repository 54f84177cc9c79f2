"""`python -m selfloop`: the command line, alone or as one of the processes of torchrun."""

from selfloop.commands.cli import main
from selfloop.ranks import is_launched

if __name__ == "__main__":
    if is_launched():
        from selfloop.commands.launch import main_of_rank

        main_of_rank()
    else:
        main()
