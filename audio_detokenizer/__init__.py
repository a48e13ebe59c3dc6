"""The audio detokenizer turns speech codes into waveforms; it loads, saves and is tested alone."""
