"""A signal ends the program, whatever code it meets."""

import os
import signal
import time

import pytest

from bandpo.interrupts import ends_on_sigterm


def swallow():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    except:  # noqa: E722
        pass
    time.sleep(30)


@pytest.mark.slow
@ends_on_sigterm()
def test_a_sigterm_that_a_library_swallows_comes_again():
    with pytest.raises(SystemExit) as caught:
        swallow()
    assert caught.value.code == 128 + signal.SIGTERM


@pytest.mark.slow
def test_a_sigterm_that_arrived_does_not_come_again():
    with pytest.raises(SystemExit):
        ends_on_sigterm()(os.kill)(os.getpid(), signal.SIGTERM)
    with ends_on_sigterm():
        time.sleep(1.5)
