"""The sub-commands of `unimedvl`: one module each, whose function has a parameter per argument and option."""
