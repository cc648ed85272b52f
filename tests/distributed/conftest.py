import socket

import pytest


@pytest.fixture(scope="module")
def lone_job():
    """A DeepSpeed job that consists of this process."""
    from torch import distributed

    from dailydialog_gym.distributed import ranks

    with socket.socket() as free, pytest.MonkeyPatch.context() as patch:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in alone.items():
            patch.setenv(name, str(value))
        ranks.start()
        yield
        distributed.destroy_process_group()
