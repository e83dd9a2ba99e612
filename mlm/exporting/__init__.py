"""What a model folder is not already: other people's formats."""
