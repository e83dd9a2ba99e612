"""The encoder: read encoder.py first."""
