import pytest
from random_episodes import make_episodes

from dailydialog_gym.rewards.own import load_scorer


def test_load_scorer_finds_functions_and_classes(tmp_path, monkeypatch):
    (tmp_path / "scorers_of_mine.py").write_text(
        "import numpy as np\n"
        "def brevity(episodes):\n    return np.array([-len(text) for text in episodes.responses])\n"
        "class Ones:\n    def __call__(self, episodes):\n        return np.ones(len(episodes))\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    scorer, weight, name = load_scorer("scorers_of_mine:brevity=-0.25")
    assert (weight, name) == (-0.25, "brevity")
    assert scorer(make_episodes([1, 1], responses=["a", "abc"])).tolist() == [-1, -3]
    scorer, weight, name = load_scorer("scorers_of_mine:Ones=2")
    assert (weight, name) == (2.0, "Ones")
    assert scorer(make_episodes([1, 1])).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("brevity", "reward 'brevity' does not have the form module:callable=weight"),
        ("my_rewards:brevity", "does not have the form"),
        ("my_rewards:brevity=much", "does not have the form"),
        (":brevity=1", "--reward ':brevity': expected module:name"),
        ("math=1", "--reward 'math': expected module:name"),
        ("no_such_module:brevity=1", "--reward 'no_such_module:brevity': .*No module named 'no_such_module'"),
        ("math:brevity=1", "--reward 'math:brevity': .*module 'math' has no attribute 'brevity'"),
        ("math:pi=1", "reward 'math:pi=1': expected a function or a class, got 3.14"),
    ],
)
def test_unusable_reward_is_an_error_that_quotes_it(text, message):
    with pytest.raises(ValueError, match=message):
        load_scorer(text)
