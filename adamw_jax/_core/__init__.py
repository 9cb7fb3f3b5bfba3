"""What every room builds on: recipes, stages, hyperparameters, masks, precision. Private."""
