"""Input that wants more than to be read: pickles in model folders, functions from elsewhere, text that commands."""

from __future__ import annotations

import html
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_core import load
from rlhf_core.cli import report as tell
from rlhf_core.errors import ConfigError, DataError, RunError
from rlhf_core.interfaces import Context
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.policies.config import CausalLMConfig, FreshModel, FreshTokenizer, Lora
from rlhf_core.policies.loading import load_pretrained
from rlhf_core.records import Demonstration
from rlhf_core.rewards.config import TextRewardConfig
from rlhf_core.rewards.network import load_trunk
from rlhf_core.runs import checkpoint
from rlhf_core.runs.display import Display
from rlhf_core.runs.report import write_report
from rlhf_core.stages.export import as_text
from rlhf_core.terminal import Console

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "max_position_embeddings": 64}  # fmt: skip


# --- pickles ---------------------------------------------------------------------------------------------------------


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def context(**changes: Any) -> Context:
    texts = [Demonstration(prompt="say", response=" hi there")]
    return Context(kind="policy", id="toy", resolve=lambda kind, id: texts, **changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as it should be."""
    folder = tmp_path_factory.mktemp("model") / "lm"
    fresh = FreshModel(sizes=SIZES, tokenizer=FreshTokenizer(text=["texts"], vocab_size=260))
    CausalLM(CausalLMConfig(fresh=fresh), context()).export(folder)
    return folder


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it; in the end nothing may have been unpickled."""
    yield Path(shutil.copytree(model, tmp_path / "lm"))
    assert not (tmp_path / "ran").exists()


def plant(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(path.parent.parent / "ran")))


def policy(folder: Path) -> CausalLM:
    return CausalLM(CausalLMConfig(model=str(folder)), context())


def test_the_payload_would_run(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    plant(tmp_path / "a" / "x.bin")
    pickle.loads((tmp_path / "a" / "x.bin").read_bytes())
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "adapter_model.bin", "vocab.pkl", "model.pt", "tokenizer.PICKLE"]
)
@pytest.mark.parametrize("beside", [True, False], ids=["beside safetensors", "alone"])
def test_a_model_folder_with_a_pickle_is_refused(folder: Path, name: str, beside: bool) -> None:
    plant(folder / name)
    if not beside:
        (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=rf"policy 'toy': .*{name} is a pickle, and reading a pickle can run any code; "
                                          "expected weights in safetensors only; .* remove the file"):  # fmt: skip
        policy(folder)


def test_a_pickle_under_another_name_is_refused(folder: Path) -> None:
    plant(folder / "weights.dat")
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "weights.dat"}}))
    with pytest.raises(ConfigError, match=r"'weights.dat', which .*index.json names, is a pickle"):
        policy(folder)
    index.unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "weights.dat"}))
    with pytest.raises(ConfigError, match=r"'weights.dat', which .*config.json names, is a pickle"):
        policy(folder)


def test_the_base_that_adapters_name_is_looked_at_too(folder: Path, tmp_path: Path) -> None:
    plant(folder / "pytorch_model.bin")
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    with pytest.raises(ConfigError, match=r"lm/pytorch_model.bin is a pickle"):
        policy(tmp_path / "adapters")


def test_what_a_trainer_leaves_beside_a_model_is_not_opened(folder: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "rng_state_0.pth"):
        plant(folder / name)
    assert policy(folder).parameter_count > 0


def test_rewards_references_tokenizers_and_adapters_refuse_pickles(folder: Path, model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    plant(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="is a pickle"):
        load_trunk(TextRewardConfig(model=str(folder)), context())
    with pytest.raises(ConfigError, match="is a pickle"):
        policy(model).set_reference(str(folder))
    with pytest.raises(ConfigError, match="is a pickle"):
        load_pretrained(AutoTokenizer, str(folder), context())
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    plant(adapters / "adapter_model.bin")
    with pytest.raises(ConfigError, match=r"policy 'toy' lora.start: .*adapter_model.bin is a pickle"):
        CausalLM(CausalLMConfig(model=str(model), lora=Lora(r=2, start=str(adapters))), context())
    (adapters / "adapter_model.bin").unlink()
    with pytest.raises(ConfigError, match=r"lora.start: cannot load adapters from .*No such file"):
        CausalLM(CausalLMConfig(model=str(model), lora=Lora(r=2, start=str(adapters))), context())


def test_files_that_are_called_safetensors_are_read_as_such(folder: Path, tmp_path: Path) -> None:
    plant(folder / "model.safetensors")
    with pytest.raises(ConfigError, match="cannot load folder"):
        policy(folder)
    state = tmp_path / "state"
    checkpoint.save(state, {"a": torch.ones(2)})
    plant(state / checkpoint.TENSOR_FILE)
    with pytest.raises(RunError):
        checkpoint.load(state)


def test_code_of_a_model_stays_off_until_the_config_says_so(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    with pytest.raises(
        ConfigError, match=r"it comes with code of its own; .*read that code, then set trust_remote_code: true"
    ):
        policy(folder)


# --- functions -------------------------------------------------------------------------------------------------------


REGISTRY = {
    "schema_version": 1,
    "functions": {"mine": "mine.py:score"},
    "components": {
        "feedback": {"texts": {"use": "demonstrations", "config": {"path": "texts.jsonl"}}},
        "prompts": {"p": {"use": "jsonl", "config": {"path": "texts.jsonl"}}},
        "policy": {"lm": {"use": "causal-lm", "config": {
            "fresh": {"sizes": SIZES, "tokenizer": {"text": ["texts"], "vocab_size": 260}}}}},
        "reward": {"own": {"use": "function", "config": {"function": "mine"}}},
    },
    "pipelines": {"p": {"policy": "lm", "stages": [
        {"sft": {"feedback": ["texts"], "epochs": 1}}, {"evaluate": {"prompts": "p", "metrics": ["length"], "rewards": {"own": 1.0}, "sampling": {"max_new_tokens": 4}}}
    ]}},
}  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry file outside the working directory, whose function leaves a mark when it is imported."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "there" / "mine.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').mkdir(exist_ok=True)\n"
        "def score(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n"
    )
    (tmp_path / "there" / "texts.jsonl").write_text('{"prompt": "say", "completion": " hi"}\n' * 3)
    registry = tmp_path / "there" / "registry.yaml"
    registry.write_text(json.dumps(REGISTRY))
    return registry


def test_functions_from_elsewhere_are_not_imported_unless_trusted(elsewhere: Path) -> None:
    ran = elsewhere.with_name("ran")
    project = load(elsewhere)
    assert project.validate() == []
    words = r"registry.yaml:1 functions.mine: would run .*mine.py:score, and the registry file lies outside the current " \
            r"directory; read that code, then add --trust-functions \(in Python: load\(..., trust_functions=True\)\)"  # fmt: skip
    for attempt in (project.run, lambda pipeline: project.run(pipeline, dry_run=True)):
        with pytest.raises(ConfigError, match=words):
            attempt("p")
    with pytest.raises(ConfigError, match=words):
        project.build("reward", "own")
    assert not ran.exists() and list(Path().iterdir()) == []
    assert load(elsewhere, trust_functions=True).build("reward", "own").function(prompts=["a"], completions=["b"]) == [
        1.0
    ]
    assert ran.exists()


def test_functions_in_the_working_directory_run_unless_they_are_not_to(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(elsewhere.parent.parent)  # below it, too
    with pytest.raises(ConfigError, match=r"would run .*, and the registry file is not trusted"):
        load(elsewhere, trust_functions=False).build("reward", "own")
    load(elsewhere).build("reward", "own")
    elsewhere.write_text(elsewhere.read_text().replace("mine.py:score", "subprocess:run"))
    Path("here", "registry.yaml").symlink_to(elsewhere)
    monkeypatch.chdir("here")
    with pytest.raises(ConfigError, match="lies outside the current directory"):
        load("registry.yaml").build("reward", "own")


def test_the_command_line_asks_for_trust(elsewhere: Path) -> None:
    command = [sys.executable, "-P", "-m", "rlhf_core", "run", "p", "--registry", str(elsewhere)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "then add --trust-functions" in done.stderr and "Traceback" not in done.stderr
    assert not elsewhere.with_name("ran").exists() and list(Path().iterdir()) == []


# --- text that commands ----------------------------------------------------------------------------------------------


HTML = """<script>document.title = 'taken'</script><img src=x onerror="document.title='taken'"><svg onload=alert(1)>"""
MARKDOWN = "[link](javascript:alert(1)) ![pic](http://x/y.png) **bold** `code` | cell\n# head\nhttp://evil.example"
ANSI = "\x1b[2J\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \x9b1m \x08\x08\r \u202egnp.exe"
MARKUP = "[red]r[/red] [link=http://x]l[/link] [/] [bold"
EVIL = " ".join([HTML, MARKDOWN, ANSI, MARKUP, "=HYPERLINK(1)"])


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A run directory with hostile text wherever models, data and people have a say."""
    metric = {key: {"mean": 1.0, "error": 0.1, "n": 4.0} for key in ("before", "after", "change")}
    stages = {EVIL: {"reward": EVIL, "rewards": {EVIL: 1.0}, "held_out": {EVIL: 0.5}, "metrics": {EVIL: metric}}}
    summary = {"pipeline": EVIL, "seed": EVIL, "stages": stages, "warnings": [EVIL], "seconds": {EVIL: 1.0}}
    sample = {"stage": EVIL, "prompt": EVIL, "before": {"response": EVIL, EVIL: 1.0}, "after": {"response": EVIL}}
    provenance = {"command": [EVIL], "versions": {EVIL: EVIL}, "files": {EVIL: EVIL}}
    trusting = {"model": HTML, "trust_remote_code": True}
    registry = {"functions": {"f": HTML}, "components": {"policy": {"lm": {"config": trusting}}},
                "pipelines": {"p": {"description": HTML}}}  # fmt: skip
    for name, value in {"summary": summary, "provenance": provenance}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    for name, lines in {
        "samples": [sample],
        "metrics": [{"stage": EVIL, "step": i, EVIL: i} for i in range(5)],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "registry.yaml").write_text(json.dumps(registry))
    return tmp_path


def test_the_report_shows_what_code_ran(planted: Path) -> None:
    page = write_report(planted).read_text()
    assert (
        f"<dt>code of models</dt><dd>policy lm: {html.escape(HTML).replace('&#x27;', '&#39;').replace('&quot;', '&#34;')}"
        in page
    )
    assert "(trust_remote_code)" in page and "<dt>functions</dt>" in page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_makes_nothing_of_a_planted_report(planted: Path) -> None:
    page = write_report(planted)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={planted / 'profile'}",
               "--virtual-time-budget=2000", "--dump-dom", page.as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "<title>" in dom and "<title>taken" not in dom
    found: list[tuple[str, list[tuple[str, str | None]]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, attributes))  # type: ignore[method-assign]
    parser.feed(dom)
    assert {"html", "style", "main"} <= {tag for tag, _ in found}
    assert not {"script", "img", "iframe", "object", "link"} & {tag for tag, _ in found}
    names = [(name, value or "") for _, attributes in found for name, value in attributes]
    assert not [name for name, _ in names if name.startswith("on")]
    assert all(value.startswith("#") for name, value in names if name in ("href", "src"))
    assert dom.count("&lt;script&gt;") > 15  # it is there, as text


def rendered(use: Any) -> str:
    """What `use(console)` sends to a terminal."""
    out = io.StringIO()
    use(Console(file=out, force_terminal=True, color_system="truecolor", width=100, highlight=False))
    return out.getvalue()


def harmless(shown: str) -> None:
    colours = re.sub(r"\x1b\[[0-9;]*m", "", shown)  # our own
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", colours), repr(colours)
    assert "\x1b[31m" not in shown.replace("\x1b[31merror:", "")
    assert "[red]r[/red]" in colours.replace("\n", "") and "[/]" in colours


def test_a_terminal_makes_nothing_of_planted_text(planted: Path) -> None:
    summary = json.loads((planted / "summary.json").read_text())
    paths = {"stages": {EVIL: {"path": EVIL, "weights": EVIL}}, "seconds": {EVIL: 1.0}}

    def show(console: Console) -> None:
        display = Display(console)
        display.start(EVIL, EVIL, EVIL, [EVIL])
        display.warn(EVIL)
        display.result(summary["stages"][EVIL]["metrics"])
        display.fitted(summary["stages"][EVIL])
        display.finish(planted, paths, EVIL)
        display.stage(EVIL, 2, 0)
        display.step(EVIL, 1, 2, {EVIL: 1.0})
        display.close_stage()

    shown = rendered(show)
    moved = re.sub(r"\x1b\[(\?25[lh]|\d*[AK])|\r", "", shown)  # rich's own, for its progress bar
    harmless(moved)


def test_tables_and_errors_make_nothing_of_planted_text(capsys: pytest.CaptureFixture[str]) -> None:
    from rlhf_core.cli.tables import replay_table

    tell(DataError(EVIL, EVIL, EVIL, EVIL))
    replay_table([{"response": MARKUP + ANSI, "score": None, "loss": 1.0, "logprobs": None, "not_finite": []}])
    out, err = capsys.readouterr()
    harmless(err)
    assert "\x1b" not in out and "[red]r[/red]" in out


def test_annotators_make_nothing_of_the_quality_tables(tmp_path: Path) -> None:
    from rlhf_core.plugins import load_plugins

    rows = [{"prompt": f"{EVIL} {i}", "chosen": "a" * (i + 1), "rejected": EVIL, "annotator": EVIL} for i in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pytest.importorskip("rlhf_plugin_quality")
    assert "feedback" in load_plugins().kinds
    command = [sys.executable, "-m", "rlhf_core", "feedback", "check", str(tmp_path / "a.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    assert "\x1b" not in done.stdout + done.stderr and "\u202e" not in done.stdout


def test_a_model_card_makes_nothing_of_planted_text() -> None:
    markdown = pytest.importorskip("markdown")
    page = markdown.markdown(f"# {as_text(EVIL)}\n\n| rewards | {as_text(EVIL)} |\n", extensions=["tables"])
    assert not re.search(r"<(script|img|svg|a|strong|code|em)\b", page)
    assert page.count("<h1>") == 1 and "<script>" in html.unescape(page) and "**bold**" in html.unescape(page)
    assert as_text("help-desk (lm), sft") == "help-desk (lm), sft"
