"""How the embedded assets are made: ``python -m dailydialog_gym.recipes.sft``, ``.intent`` and ``.synonyms``."""
