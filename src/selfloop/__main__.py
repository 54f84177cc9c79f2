"""`python -m selfloop`: the command line, for launchers such as torchrun."""

from selfloop.commands.cli import main

if __name__ == "__main__":
    main()
