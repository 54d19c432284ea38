"""The run from settings to adapter, its checkpoints, and the commands train and check."""
