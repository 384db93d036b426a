"""Failures that a user can mend. The command-line tools print them as one sentence, without a traceback."""


class UserError(Exception):
    """A foreseeable failure. Its message says what came, what was expected and what to do."""


class ConfigError(UserError):
    """A configuration file or a command-line option that cannot be used."""


class TrainingError(UserError):
    """A training that had to stop. Checkpoints written before it are intact."""


class MissingPackageError(UserError, ImportError):
    """An optional package that a command needs. The message has the line that installs it."""
