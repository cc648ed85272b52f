import pytest


@pytest.fixture(scope="module")
def lone_job():
    """A DeepSpeed job that consists of this process."""
    from torch import distributed

    from dailydialog_gym.distributed import ranks

    # Port 0: the store of the ranks takes a free one itself
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in alone.items():
            patch.setenv(name, str(value))
        ranks.start()
        yield
        distributed.destroy_process_group()
