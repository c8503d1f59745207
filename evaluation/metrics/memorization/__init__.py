"""An `evaluate` metric module: `evaluate.load` of this folder, or import the class."""
