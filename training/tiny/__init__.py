"""Ming-Tiny: its small world, the data generators, and the recipe that trains the bundled checkpoint."""
