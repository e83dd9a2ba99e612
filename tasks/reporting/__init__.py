"""What a fine-tuned model's scores are worth: intervals, baselines, calibration, mistakes."""
