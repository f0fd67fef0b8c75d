"""What tests of the command line share."""

import pytest

from bandpo.cli.app import app


@pytest.fixture
def bandpo(tmp_path, monkeypatch, capsys):
    """The command line in this process, in an empty directory: arguments in, what it printed out."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        app(args=[str(a) for a in arguments], standalone_mode=False)
        return capsys.readouterr().out

    return run
