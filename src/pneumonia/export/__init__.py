"""Other forms of a trained model, and the proof that they agree."""
