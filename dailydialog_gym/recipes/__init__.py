"""How models and assets are made: ``python -m dailydialog_gym.recipes.NAME``."""
