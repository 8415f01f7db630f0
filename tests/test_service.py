"""The example of a web service, asked by real clients over real sockets."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgeport_runtime import Prediction, load

ROOT = Path(__file__).parents[1]
BUNDLE, SEVEN = ROOT / "examples" / "digits", (ROOT / "examples" / "seven.png").read_bytes()
STARTS_WITHIN_S = 60


@contextmanager
def served(**environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The service's process, ready, and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(ROOT / "examples" / "service"), "--port", str(port), "--no-access-log"]
    environment = {**os.environ, "BUNDLE": str(BUNDLE), **environment}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            end = time.monotonic() + STARTS_WITHIN_S
            while not answers(port):
                assert process.poll() is None and time.monotonic() < end, process.stdout and process.stdout.read()
                time.sleep(0.05)
            yield process, port
        finally:
            process.kill()


def answers(port: int) -> bool:
    try:
        return ask(port, "GET", "/healthz")[0] == 200
    except OSError:
        return False


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read().decode(), dict(response.getheaders())
    finally:
        connection.close()


def test_clients_get_answers_faults_and_figures() -> None:
    expected = load(BUNDLE)(SEVEN)
    assert isinstance(expected, Prediction)
    with served(MAX_BODY_BYTES="5000") as (_, port):
        with ThreadPoolExecutor(8) as clients:
            found = list(clients.map(lambda _: ask(port, "POST", "/predict", SEVEN), range(40)))
        assert {status for status, _, _ in found} == {200}
        for _, text, _ in found:
            answer = json.loads(text)
            assert answer["label"] == "7" and answer["score"] == pytest.approx(expected.score, abs=1e-5) and len(answer["top"]) == 5
        assert ask(port, "GET", "/readyz")[:2] == (200, "0 waiting\n")
        status, text, _ = ask(port, "POST", "/predict", b"torn")
        assert status == 400 and "an image of 4 bytes: expected an image" in json.loads(text)["error"]
        assert ask(port, "POST", "/predict", bytes(6000))[0] == 413
        assert ask(port, "GET", "/predict")[0] == 405
        families = {each.name: each.samples for each in text_string_to_metric_families(ask(port, "GET", "/metrics")[1])}
        assert families["edgeport_batcher_answered"][0].value == 40 and families["edgeport_batcher_failed"][0].value == 1
        assert families["edgeport_model_images"][0].value == 40 and families["edgeport_model_calls"][0].value <= 40


@pytest.mark.parametrize(("environment", "status", "words"), [({"DEADLINE_MS": "0.0001"}, 504, "deadline"), ({"MAX_QUEUE": "1"}, 503, "max_queue")])
def test_more_than_it_can_do_is_refused_with_when_to_come_again(environment: dict[str, str], status: int, words: str) -> None:
    with served(**environment) as (_, port), ThreadPoolExecutor(16) as clients:
        found = list(clients.map(lambda _: ask(port, "POST", "/predict", SEVEN), range(200)))
    refused = [each for each in found if each[0] != 200]
    assert refused and {each[0] for each in refused} == {status}
    assert all(
        words in json.loads(text)["error"] and {key.lower(): value for key, value in headers.items()}["retry-after"] == "1" for _, text, headers in refused
    )


def test_a_stop_answers_what_was_accepted() -> None:
    with served() as (process, port), ThreadPoolExecutor(8) as clients:
        pending = [clients.submit(ask, port, "POST", "/predict", SEVEN) for _ in range(200)]
        while not any(each.done() for each in pending):
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)  # uvicorn raises the signal again after its own end
        statuses = []
        for each in pending:
            try:
                statuses.append(each.result(60)[0])
            except ConnectionRefusedError:  # it was no longer listening
                statuses.append(None)
            except ConnectionResetError:  # it stood in the kernel's queue, and was never accepted
                statuses.append(None)
        assert process.stdout is not None
        log = process.stdout.read()
    assert set(statuses) <= {200, None} and statuses.count(200) >= 1
    assert "Application shutdown complete" in log and "Traceback" not in log


@pytest.mark.parametrize(
    ("bundle", "sentence"),
    [(None, "set BUNDLE to the folder of a bundle"), (ROOT / "nothing", "there is no such folder"), (BUNDLE / "model.onnx", "")],
)
def test_a_service_without_its_bundle_does_not_start(bundle: Path | None, sentence: str) -> None:
    """And the last words say why; a lone file of a classifier is as good as its bundle."""
    environment = {name: value for name, value in os.environ.items() if name != "BUNDLE"} | ({} if bundle is None else {"BUNDLE": str(bundle)})
    if not sentence:
        with served(BUNDLE=str(bundle)) as (_, port):
            assert ask(port, "POST", "/predict", SEVEN)[0] == 200
        return
    command = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(ROOT / "examples" / "service"), "--port", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and sentence in done.stderr
