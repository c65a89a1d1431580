"""The subcommands of `mrcnn`: of each its summary, examples, arguments and what it runs."""
