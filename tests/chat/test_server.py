"""The server of the page: its port, and which passwords and URLs it takes."""

import socket

import pytest

from dailydialog_gym.chat.server import free_port, launch


@pytest.mark.parametrize("auth", ["secret", "", ":", "me:", ":secret"])
def test_a_name_without_a_password_is_refused(auth):
    with pytest.raises(ValueError, match=r"^--auth: expected NAME:PASSWORD"):
        launch(None, "127.0.0.1", 7860, share=False, auth=auth)


@pytest.mark.parametrize("path", ["/chat", "example.org/chat", "ftp://example.org", ""])
def test_a_root_path_that_is_no_url_is_refused(path):
    with pytest.raises(ValueError, match=r"^--root-path .*: expected a URL"):
        launch(None, "127.0.0.1", 7860, share=False, auth=None, root_path=path)


def test_a_busy_port_is_replaced_by_the_next_one():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert port < free_port("127.0.0.1", port) < port + 100
    assert free_port("127.0.0.1", port) == port
    with pytest.raises(ValueError, match=r"--host 203\.0\.113\.1 --port 7860"):
        free_port("203.0.113.1", 7860)
