"""The `ming` command: one sub-command for each way to use a model."""
