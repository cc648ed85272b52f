"""How the embedded models were made. Each module is a command: ``python -m dailydialog_gym.recipes.sft --help``."""
