"""The subcommands of the command line: each assembles, and decides nothing."""
