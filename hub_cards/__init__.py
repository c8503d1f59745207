"""What is published: the nano checkpoint with its card, and the code that pushes a checkpoint folder to the Hub."""

from pathlib import Path

# Part of the wheel and of a checkout alike (setup.cfg, package_data): the default model of the command line.
NANO_DIRECTORY = Path(__file__).resolve().parent / "unimedvl-nano"
