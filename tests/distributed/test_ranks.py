"""What differs between the ranks of a job: the device, and the random generators of a run that is resumed."""

import json

import numpy as np
import pytest
import torch
from stub_gpus import StubGpus

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install -e '.[deepspeed]'")

from dailydialog_gym.distributed import ranks
from dailydialog_gym.distributed.runs import RankedCheckpoints
from dailydialog_gym.runs import RandomState


class TwoGpus:
    """DeepSpeed's accelerator of a machine with several GPUs, of which the first is selected at first."""

    def __init__(self):
        self.current = 0

    def set_device(self, index):
        self.current = index

    def current_device_name(self):
        return f"cuda:{self.current}"


def test_a_rank_selects_the_gpu_of_its_local_rank_before_it_joins_the_job(monkeypatch):
    gpus, joined_with = TwoGpus(), []
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(ranks, "get_accelerator", lambda: gpus)
    monkeypatch.setattr(ranks.deepspeed, "init_distributed", lambda: joined_with.append(gpus.current))
    monkeypatch.setattr(ranks.distributed, "get_rank", lambda: 5)
    monkeypatch.setattr(ranks.distributed, "get_world_size", lambda: 8)
    assert ranks.start() == (5, 8, torch.device("cuda:1"))
    assert joined_with == [1]


@pytest.mark.parametrize(("ranks_before", "gpu_states"), [(1, [20, 11]), (2, [20, 21])])
def test_on_another_number_of_ranks_each_rank_keeps_its_own_torch_generators(
    lone_job, tmp_path, monkeypatch, ranks_before, gpu_states
):
    """With rank 0's generators, all ranks would draw the same tokens. The generator of the batches must be the same."""
    gpus = StubGpus(monkeypatch, current=1)
    saved = np.random.default_rng(5)
    torch.manual_seed(5)
    parts = [{"random": RandomState(saved).state_dict()}] * ranks_before
    (tmp_path / "000003").mkdir()
    torch.save({"iteration": 3, "progress": {}, "parts": parts}, tmp_path / "000003/state.pt")
    manifest = {"iteration": 3, "files": {}, "fingerprint": None}
    (tmp_path / "000003/checkpoint.json").write_text(json.dumps(manifest), encoding="utf-8")
    gpus.states = [torch.tensor(20), torch.tensor(21)]
    rng = np.random.default_rng(6)
    torch.manual_seed(6)
    own = torch.get_rng_state()
    checkpoints = RankedCheckpoints(tmp_path, lambda folder: None, {"random": RandomState(rng)}, engines=[])
    assert checkpoints.load() == (3, {})
    assert gpus.states == gpu_states
    assert torch.equal(torch.get_rng_state(), own) == (ranks_before == 2)
    assert rng.random() == saved.random()
