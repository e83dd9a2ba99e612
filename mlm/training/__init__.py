"""Pretraining through the Lightning Trainer."""
