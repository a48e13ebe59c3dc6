"""Speech codes to waveform: a component of Ming-Lite-Omni that loads, saves and is tested alone."""
