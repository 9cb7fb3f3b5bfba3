"""The base of all packages: recipes, stages, hyperparameters, masks, precision. Private."""
