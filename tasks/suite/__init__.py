"""One encoder on many sets, by one fixed protocol: what `mlm evaluate-suite` runs."""
