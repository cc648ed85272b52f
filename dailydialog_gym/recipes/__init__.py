"""How models and assets are made: ``python -m dailydialog_gym.recipes.NAME``."""

from dailydialog_gym.extras import need

need("torch", "transformers", "tyro", "filelock", "scipy", "sklearn", "tqdm", "yaml")
