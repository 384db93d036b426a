"""Failures that a user can mend: told in one sentence, without a traceback, by the command-line tools."""


class UserError(Exception):
    """A foreseeable failure whose message says what came, what was expected and what to do."""


class ConfigError(UserError):
    """A configuration file or a command-line option that cannot be used."""


class TrainingError(UserError):
    """A training that had to stop; checkpoints written before it are intact."""
