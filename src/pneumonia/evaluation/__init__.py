"""From weights to figures, and to a yes or no."""
