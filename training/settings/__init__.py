"""The settings of a run: what each may be, and the YAML files they come from."""
