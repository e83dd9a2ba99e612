"""The subcommands that need a task head."""
