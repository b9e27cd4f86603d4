"""Ways to ask a bundle or a server for a prediction."""
