"""The application that people use in a browser: `unimedvl ui`, and the same as a Space."""
