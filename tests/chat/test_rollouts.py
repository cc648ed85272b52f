"""The Rollouts tab's reading and HTML; the tab itself is tested in a browser in test_page.py."""

import re

from rollout_files import write_rollouts

from dailydialog_gym.chat.rollouts import last_iteration, read_rollouts, rollouts_page


def test_the_lines_of_an_iteration_are_read(tmp_path):
    assert last_iteration(tmp_path) == 0
    write_rollouts(tmp_path, 12)
    assert last_iteration(tmp_path) == 12
    assert [line["iteration"] for line in read_rollouts(tmp_path, 1)] == [1, 1]
    assert read_rollouts(tmp_path, 99) == []
    with open(tmp_path / "rollouts.jsonl", "ab") as file:
        file.write('{"iteration": 13, "context": ["é'.encode()[:-1])  # the run is writing
    assert last_iteration(tmp_path) == 12
    assert len(read_rollouts(tmp_path, 1)) == 2


def test_replies_are_sorted_and_their_tokens_coloured(tmp_path):
    write_rollouts(tmp_path)
    groups = read_rollouts(tmp_path, 1)[:1]
    html = rollouts_page(groups, "advantage")
    assert not re.search("<[biu]>|\u202e", html) and "&lt;b&gt;" in html and "⟨U+202E⟩" in html
    assert html.index("yes") < html.index("no")
    assert html.count('class="token good" style="--shade:1.000"') == html.count('token bad" style="--shade:0.500"') == 2
    assert "advantage +2.00 · reward +0.400 · KL +2.00" in html
    assert rollouts_page(groups, "reward").count('token good" style="--shade:1.000"') == 4
    assert rollouts_page(groups, "kl").count('token bad" style="--shade:1.000"') == 4
    for name, value in {"ratio after the update": "+1.1", "reward/meteor": "+0.25", "KL": "+1"}.items():
        assert f"<span>{name}</span> <span>{value}</span>" in html
