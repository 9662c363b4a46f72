"""From a trained student to files that others can run, each proven equal to it."""
