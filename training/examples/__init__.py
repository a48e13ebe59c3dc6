"""Worked examples of fine-tuning Ming-Tiny."""
