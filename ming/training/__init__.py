"""Training of Ming-Lite-Omni: losses, batches, the loop, and fine-tuning (`ming finetune`)."""
