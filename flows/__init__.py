"""One deployable flow in each file, and the command line. A flow is a recipe: the work is in `tasks`."""
