"""The commands of `cfn`, one module each, with `main(argv) -> exit code`."""
