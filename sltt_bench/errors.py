"""What whoever gave a command can mend."""


class UserError(Exception):
    """Its message says what is wrong, where, and what to do: the command line shows it alone, with exit code 2."""
