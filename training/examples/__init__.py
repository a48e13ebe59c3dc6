"""Complete examples of fine-tuning Ming-Tiny."""
