"""Labels: the labellers of a data root, and the reports that they read."""
