"""Commands of `ctclip`, a module for each subject. `flows.cli` lists them all."""
