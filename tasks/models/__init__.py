"""Models of a data root: presets, recipes, finding and importing."""
