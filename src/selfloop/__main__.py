"""`python -m selfloop`: the command line."""

from selfloop.commands.cli import main

if __name__ == "__main__":
    main()
