"""Recipes: Ming-Tiny from nothing (`tiny/`), and examples of fine-tuning."""
