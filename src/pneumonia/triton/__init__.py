"""The Triton model repository and the server that the wheel carries."""
