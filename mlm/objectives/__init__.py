"""What the encoder is trained to do: one file an objective."""
