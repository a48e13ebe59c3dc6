"""The image head: learnable queries, connector, Sana transformer and DC-AE (Ming-Lite-Uni, arXiv 2505.02471)."""
