"""Programs beside the model."""
