"""Training of Ming-Lite-Omni: objectives, data and recipes."""
