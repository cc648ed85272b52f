"""Score a model's replies against the reference replies: ``python -m dailydialog_gym.evaluate``."""

from dailydialog_gym.extras import need

need("torch", "transformers", "tyro", "datasets", "evaluate", "rouge_score", "sacrebleu")

from dailydialog_gym.evaluate.evaluation import Evaluation, change_intervals, evenly_spread
from dailydialog_gym.evaluate.metrics import score_replies
from dailydialog_gym.reports.tables import table

__all__ = ["Evaluation", "change_intervals", "evenly_spread", "score_replies", "table"]
