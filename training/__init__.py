"""Recipes: Ming-Tiny from random weights (`tiny/`), and examples of fine-tuning."""
