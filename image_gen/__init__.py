"""Image generation: learnable queries, connector, Sana transformer and DC-AE (Ming-Lite-Uni, arXiv 2505.02471)."""
