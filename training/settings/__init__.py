"""The settings of a run: sections in which each has its check and its text, and the YAML files they come from."""
