"""The GitHub Action: its steps run as in GitHub's runner, against a stand-in for GitHub's API."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.repositories import SPEC, commit_all, compile_spec, git
from tests.places import ROOT

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())


class Forge(ThreadingHTTPServer):
    """Issue comments of one pull request; ``status`` is the answer to whoever would write."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Comments)
        self.comments: list[dict[str, Any]] = []
        self.writes: list[str] = []
        self.status = 200
        self.person: str | None = None  # whose token it is; None for that of a job

    def add(self, body: str, kind: str = "Bot", login: str = "github-actions[bot]") -> None:
        self.comments.append({"id": len(self.comments) + 1, "body": body, "user": {"type": kind, "login": login}})


class Comments(BaseHTTPRequestHandler):
    server: Forge

    def do_GET(self) -> None:
        if self.path == "/user":
            who = self.server.person
            return self.answer(200, {"login": who}) if who else self.answer(403, {"message": "not accessible"})
        match = re.fullmatch(r"/repos/me/mine/issues/7/comments\?per_page=100&page=(\d+)", self.path)
        assert match, self.path
        page = int(match[1])
        return self.answer(200, self.server.comments[100 * (page - 1) : 100 * page])

    def do_POST(self) -> None:
        self.write(f"POST {self.path}")

    def do_PATCH(self) -> None:
        self.write(f"PATCH {self.path}")

    def write(self, what: str) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"]
        assert self.headers["Authorization"] == "Bearer secret-token"
        if self.server.status != 200 or len(body) > 65_536:
            return self.answer(self.server.status if len(body) <= 65_536 else 422, {"message": "no"})
        self.server.writes.append(what)
        if what == "POST /repos/me/mine/issues/7/comments":
            who = self.server.person
            self.server.add(body, *(("User", who) if who else ()))
        else:
            number = re.fullmatch(r"PATCH /repos/me/mine/issues/comments/(\d+)", what)
            assert number, what
            self.server.comments[int(number[1]) - 1]["body"] = body
        return self.answer(200, {})

    def answer(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def forge() -> Iterator[Forge]:
    server = Forge()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class Pull:
    """A clone with a base and changes, and a runner for the Action's steps."""

    def __init__(self, folder: Path, forge: Forge) -> None:
        self.folder, self.temp, self.forge = folder / "clone", folder / "temp", forge
        self.folder.mkdir()
        self.temp.mkdir()
        (self.temp / "ratc").symlink_to(sys.prefix)  # in place of the first step, which installs ratc
        (self.folder / "config.yaml").write_text(SPEC)
        compile_spec(self.folder)
        self.base = commit_all(self.folder)

    def change(self, old: str, new: str, compiled: bool = True) -> None:
        path = self.folder / "config.yaml"
        path.write_text(path.read_text().replace(old, new))
        if compiled:
            compile_spec(self.folder)

    def run(self, event: str = "pull_request", **inputs: str) -> tuple[int, str]:
        """Run the steps; the first status that is not 0, and all that they print."""
        (self.temp / "event.json").write_text(json.dumps({"pull_request": {"number": 7, "base": {"sha": self.base}}}))
        given = {name: str(one.get("default", "")) for name, one in ACTION["inputs"].items()}
        given |= {"token": "secret-token", **inputs}
        variables = {
            **os.environ,
            "RUNNER_TEMP": str(self.temp),
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_EVENT_PATH": str(self.temp / "event.json"),
            "GITHUB_STEP_SUMMARY": str(self.temp / "summary.md"),
            "GITHUB_OUTPUT": str(self.temp / "output"),
            "GITHUB_REPOSITORY": "me/mine",
            "GITHUB_API_URL": f"http://127.0.0.1:{self.forge.server_port}",
        }
        for name in ("summary.md", "output"):
            (self.temp / name).write_text("")
        status, said = 0, ""
        for step in ACTION["runs"]["steps"][1:]:
            assert step["shell"] == "bash"
            outputs = dict(line.split("=", 1) for line in (self.temp / "output").read_text().splitlines())
            if not self.holds(step.get("if", "true"), event, outputs):
                continue
            own = {name: filled(text, given, outputs) for name, text in step.get("env", {}).items()}
            command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]]
            done = subprocess.run(command, cwd=self.folder, env={**variables, **own}, capture_output=True, text=True)
            said += done.stdout + done.stderr
            status = status or done.returncode
            if status:
                break
        return status, said

    @staticmethod
    def holds(condition: str, event: str, outputs: dict[str, str]) -> bool:
        known = {
            "true": True,
            "github.event_name == 'pull_request'": event == "pull_request",
            "steps.check.outputs.status != '0'": outputs.get("status") != "0",
        }
        return known[condition]


def filled(text: str, inputs: dict[str, str], outputs: dict[str, str]) -> str:
    """An expression of the Action's, `${{ inputs.NAME }}`, with its value."""
    match = re.fullmatch(r"\$\{\{ (inputs|steps\.check\.outputs)\.(\w+) \}\}", text)
    assert match, text
    return (inputs if match[1] == "inputs" else outputs)[match[2]]


@pytest.fixture
def pull(tmp_path: Path, forge: Forge) -> Pull:
    return Pull(tmp_path, forge)


def test_no_step_interpolates_an_expression_into_its_script() -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"]


def test_one_comment_is_kept_up_to_date_in_a_pull_request(pull: Pull, forge: Forge) -> None:
    for number in range(120):
        forge.add(f"something else {number}", "User")
    forge.add("<!-- ratc -->\nby somebody else", "User")
    assert pull.run()[0] == 0
    assert forge.writes == ["POST /repos/me/mine/issues/7/comments"]
    assert "none of them changes" in forge.comments[-1]["body"]
    pull.change("target_batch_size: 8", "target_batch_size: 16")
    status, said = pull.run()
    assert status == 0, said
    assert forge.writes[1:] == [f"PATCH /repos/me/mine/issues/comments/{len(forge.comments)}"]
    body = forge.comments[-1]["body"]
    assert "It trains something else" in body
    assert "| `training.global_batch_size` | `8` | `16` |" in body
    assert (pull.temp / "summary.md").read_text() == body
    assert pull.run()[0] == 0
    assert len(forge.writes) == 2, "the same text is not written again"
    assert "secret-token" not in said


def test_the_comment_of_a_person_s_token_is_kept_up_to_date(pull: Pull, forge: Forge) -> None:
    forge.person = "ada"
    forge.add("<!-- ratc -->\nby a bot")
    forge.add("<!-- ratc -->\nby somebody else", "User", "bob")
    assert pull.run()[0] == 0
    pull.change("target_batch_size: 8", "target_batch_size: 16")
    assert pull.run()[0] == 0
    assert forge.writes == ["POST /repos/me/mine/issues/7/comments", "PATCH /repos/me/mine/issues/comments/3"]


def test_a_base_that_cannot_be_fetched_is_named(pull: Pull, forge: Forge) -> None:
    pull.base = "0123456789abcdef0123456789abcdef01234567"
    assert pull.run()[0] == 0
    assert "Nothing was compared" in forge.comments[0]["body"]
    assert "(0123456)" in forge.comments[0]["body"]
    assert "is new" not in forge.comments[0]["body"]


def test_drift_fails_the_job_and_appears_in_the_comment(pull: Pull, forge: Forge) -> None:
    pull.change("batch_size: 2", "batch_size: 4", compiled=False)
    status, said = pull.run()
    assert status == 1
    assert "::error title=R425 (ratc check),file=compiled/demo/local/lock.yaml" in said
    assert "**R425**" in forge.comments[0]["body"]


def test_the_comment_marks_a_new_folder(pull: Pull, forge: Forge) -> None:
    (pull.folder / "second.yaml").write_text(SPEC.replace("demo", "second"))
    compile_spec(pull.folder, "second.yaml")
    assert pull.run()[0] == 0
    assert "`compiled/second/local` is new" in forge.comments[0]["body"]


def test_the_comment_names_a_folder_that_is_gone(pull: Pull, forge: Forge) -> None:
    git(pull.folder, "rm", "-rq", "compiled")
    pull.run()
    assert "### `compiled/demo/local` is gone" in forge.comments[0]["body"]
    assert "none of them changes" not in forge.comments[0]["body"]


def test_a_path_that_is_not_there_is_in_the_comment(pull: Pull, forge: Forge) -> None:
    status, _ = pull.run(paths="nowhere")
    assert status == 2
    assert "could not be checked" in forge.comments[0]["body"]
    assert "nowhere" in forge.comments[0]["body"]


def test_the_comment_says_why_a_folder_cannot_be_compared(pull: Pull, forge: Forge) -> None:
    (pull.folder / "compiled/demo/local/lock.yaml").write_text("lock_version: [\n")
    pull.run()
    assert "could not be compared" in forge.comments[0]["body"]
    assert "R003" in forge.comments[0]["body"]


@pytest.mark.parametrize(("event", "inputs"), [("push", {}), ("pull_request", {"comment": "false"})])
def test_no_comment_is_written_if_comments_are_off(
    pull: Pull, forge: Forge, event: str, inputs: dict[str, str]
) -> None:
    assert pull.run(event, **inputs)[0] == 0
    assert forge.writes == []


def test_a_token_without_permission_to_comment_gives_a_warning(pull: Pull, forge: Forge) -> None:
    forge.status = 403
    status, said = pull.run()
    assert status == 0
    assert "::warning::no comment could be written (POST /repos/me/mine/issues/7/comments: 403 Forbidden)" in said
    assert "none of them changes" in (pull.temp / "summary.md").read_text()


def test_a_long_comment_is_cut_to_the_limit_of_the_forge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "action"))
    module = importlib.import_module("pull_request")
    one = "x" * 9_000
    text = module.whole([one] * 60)
    assert 60_000 < len(text) < 65_536
    assert "… and 53 more that this text has no room for" in text
    assert len(module.whole(["x" * 100_000])) < 1_000
    text = module.whole(["first", "x" * 66_000, "last"])
    assert "first" in text
    assert "last" in text
    assert "… and 1 more" in text
    assert "… and" not in module.whole([one] * 30, module.MOST_OF_SUMMARY)


def test_a_mention_in_a_spec_notifies_nobody(pull: Pull, forge: Forge) -> None:
    pull.change("experiment_name: demo", "experiment_name: demo\ndescription: 'ask @everyone # or <b>us</b>'")
    pull.change("target_batch_size: 8", "target_batch_size: 16")
    assert pull.run()[0] == 0
    assert "@everyone" in forge.comments[0]["body"]
    outside = re.sub(r"`[^`]*`", "", forge.comments[0]["body"])
    assert not re.search(r"@\w|<b>", outside)


def test_paths_are_not_run_as_commands(pull: Pull, forge: Forge) -> None:
    (pull.folder / "a folder; touch ran").mkdir()
    status, said = pull.run(paths="a folder; touch ran\n\n$(touch ran)\n")
    assert status == 2, said
    assert not (pull.folder / "ran").exists()
