"""Ming-Tiny: the small world, its data generators and the recipe that trains the bundled checkpoint."""
