"""From text files to a token store, and from a token store to masked rows."""
