"""Settings are compared: a grid with seeds, chosen on held-out rows, tested over seeds and examples."""
