import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from seen import one_line
from stress.faults import cells_of
from typer.testing import CliRunner

from brittle.cli.main import app
from brittle.cli.run import duration
from brittle.models.networks import build, papernot_mnist
from brittle.study.kinds.network import cell as network_cell
from brittle.study.store import files
from brittle.study.store.store import Store

LITTLE = ["--set", "audits.quick.rows=20"]
ON = ["--data", "digits"]
SMALL = ["--set", "training.epochs=1", "--set", "rows=6", "--set", "shard_rows=3", *LITTLE]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store in which a small quickstart has been run."""
    home = tmp_path_factory.mktemp("home")
    done = CliRunner().invoke(app, ["study", "run", "quickstart", *SMALL, "--store", str(home), "-q", "--threads", "1"])
    assert done.exit_code == 0, done.output
    return home


@pytest.fixture
def brittle(monkeypatch, tmp_path):
    """Runs a command line in a home of its own: exit code, standard output and standard error."""
    monkeypatch.setenv("BRITTLE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BRITTLE_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, [str(a) for a in arguments])
        assert done.exit_code == code, done.output
        assert "Traceback" not in done.output
        return done

    return run


# What works ---------------------------------------------------------------------------------------------------------


def test_a_study_prints_its_table_and_writes_its_page(brittle, finished):
    done = brittle("report", "quickstart", "--store", finished)
    for word in ("standard", "tempered", "distilled", "song_1", "song_2", "song_3"):
        assert word in done.stdout
    page = finished / "reports" / "quickstart" / "report.html"
    assert str(page) in done.stdout
    assert page.stat().st_size > 10_000
    assert "audit of" in done.stdout


def test_a_second_run_takes_all_from_the_store(brittle, finished):
    done = brittle("study", "run", "quickstart", *SMALL, "--store", finished)
    assert "0 cells computed, 20" not in done.stderr  # six rows in two shards: more cells than models and attacks
    assert "0 cells computed, 29 from the store" in done.stderr


def test_json_is_json_and_nothing_else(brittle, finished):
    done = brittle("study", "run", "quickstart", *SMALL, "--store", finished, "--json")
    assert json.loads(done.stdout)
    assert done.stderr == ""


def test_a_dry_run_does_nothing(brittle, tmp_path):
    done = brittle("study", "run", "quickstart", "--dry-run")
    assert "20 cells, 0 in the store, 20 to do" in done.stdout
    assert "to do: about " in done.stdout
    assert " operations" in done.stdout
    assert not (tmp_path / "home").exists()


def test_a_dry_run_of_what_is_done_costs_nothing(brittle, finished):
    done = brittle("study", "run", "quickstart", *SMALL, "--store", finished, "--dry-run")
    assert "29 in the store, 0 to do" in done.stdout
    assert "about" not in done.stdout
    rows = json.loads(brittle("study", "run", "quickstart", "--dry-run", "--store", finished, "--json").stdout)
    assert all(("cost" in row) != row["stored"] for row in rows)
    assert min(row["cost"]["seconds"] for row in rows if not row["stored"]) > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "dask"], "unknown engine 'dask'"),
        (["--address", "auto"], "--address goes with --engine ray, got auto for the engine here"),
        (["--gpus-per-cell", "0.5"], "--gpus-per-cell goes with --engine ray"),
        (["--engine", "ray", "--address", "x:1", "--workers", "2"], "--workers is for a Ray that is started here"),
    ],
)
def test_engines_that_do_not_fit_are_refused(brittle, arguments, said):
    assert said in one_line(brittle("study", "run", "quickstart", *arguments, code=2))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.42, "0.4 s"), (12, "12 s"), (90, "1.5 min"), (3600, "1 h"), (130_000, "36 h"), (900_000, "10 days")],
)
def test_durations_are_said_in_the_unit_that_fits(seconds, said):
    assert duration(seconds) == said


def test_status_counts_what_is_there(brittle, finished):
    assert "29 in the store, 0 to do" in brittle("study", "status", "quickstart", *SMALL, "--store", finished).stdout


def test_a_trained_network_is_attacked_by_its_key(brittle):
    settings = ["--epochs", 1, "--batch-size", 32, "--temperature", 2]
    said = brittle("train", *settings).stderr
    key = said.rpartition("brittle attack ")[2].split()[0]
    done = brittle("attack", key, "--attack", "song_1", "--attack", "song_3", "--rows", 8, "--option", "max_pixels=20")
    assert "song_1" in done.stdout
    assert "song_3" in done.stdout
    assert "0 cells computed, 3 from the store" in brittle("train", *settings).stderr


def test_a_student_learns_from_a_stored_teacher(brittle, finished):
    teacher = Store(finished).read_study("quickstart")["models"][1]["train"]
    asked = ["--temperature", 20, "--epochs", 1, "--store", finished, "-q", "--name", "student"]
    brittle("train", "--teacher", teacher[:10], *asked)
    student = Store(finished).read_study("student")["models"][-1]
    cell = Store(finished).get(student["train"])
    assert cell is not None
    label = Store(finished).get(cell.record["parents"]["labels"])
    assert label is not None
    assert label.record["parents"]["teacher"] == teacher
    assert label.record["params"] == {"temperature": 20.0}


def test_weights_from_elsewhere_are_attacked(brittle, tmp_path):
    file = tmp_path / "mine.safetensors"
    save_file(build(papernot_mnist, seed=5).state_dict(), file)
    of = ["--network", "papernot_mnist", "--data", "digits"]
    done = brittle("attack", file, *of, "--attack", "song_1", "--rows", 6, "--json")
    assert json.loads(done.stdout)


def test_a_network_is_explained_by_its_key_and_from_a_file(brittle, finished, tmp_path):
    model = Store(finished).read_study("quickstart")["models"][0]["train"]
    asked = ["--images", 8, "--random", 1, "--points", 3, "--knockout", "3,7", "--store", finished]
    done = brittle("explain", model[:10], *asked, "--name", "explained", "-o", tmp_path / "page")
    page = (tmp_path / "page" / "report.html").read_text()
    assert "Which units matter" in page
    assert "Outputs of the strongest feature maps" in page
    assert "report.html" in done.stdout
    cell = Store(finished).get(Store(finished).read_study("explained")["models"][0]["units"][0]["cell"])
    assert cell is not None
    assert cell.record["params"]["layers"] == ["1", "3", "6", "8"]
    assert "cells computed, 0 from" not in brittle("explain", model[:10], *asked).stderr
    file = tmp_path / "mine.safetensors"
    save_file(build(papernot_mnist, seed=5).state_dict(), file)
    of = ["--network", "papernot_mnist", "--data", "digits"]
    brittle("explain", file, *of, "--layers", "8, 11", *asked, "--logits", "-q")
    assert "unknown layer 'relu'" in one_line(brittle("explain", model, "--layers", "relu", *asked, "-q", code=2))
    assert "unknown class of digits 'six'" in one_line(
        brittle("explain", model, *asked, "--knockout", "six", "-q", code=2)
    )


def test_the_store_is_listed_verified_and_cleaned(brittle, finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    assert "train tempered, seed 0" in brittle("store", "list", "--store", copy).stdout
    cell = next(copy.glob("cells/*/weights.safetensors"))
    cell.write_bytes(cell.read_bytes()[:-1])
    assert "1 damaged" in brittle("store", "verify", "--store", copy, code=1).stdout
    brittle("store", "clean", "--store", copy)
    assert "0 damaged" in brittle("store", "verify", "--store", copy).stdout
    brittle("store", "clean", "--everything", "--yes", "--store", copy)
    assert not Store(copy).keys()


@pytest.mark.parametrize("function", ["train", "measure", "select"])
@pytest.mark.parametrize("part", ["title", "params", "parents", "scalars", "data", "provenance"])
def test_a_record_that_brittle_did_not_write_spoils_no_list(brittle, finished, tmp_path, function, part):
    for place in ("cells", "studies"):
        shutil.copytree(finished / place, tmp_path / "copy" / place)
    for file in (tmp_path / "copy" / "cells").glob("*/cell.json"):
        record = files.unsealed(file.read_bytes())
        if record["function"] == function:
            file.write_bytes(files.sealed({**record, part: ["odd"]}))
    rows = json.loads(brittle("store", "list", "--store", tmp_path / "copy", "--json").stdout)
    assert len(rows) == len(list((tmp_path / "copy").glob("cells/*/cell.json")))
    assert "song_1 on standard" in brittle("store", "list", "--store", tmp_path / "copy").stdout


def test_the_lists_name_what_there_is(brittle):
    assert {"digits", "mnist", "cifar10", "yale-faces"} <= set(json.loads(brittle("data", "list", "--json").stdout))
    assert "quickstart" in brittle("study", "list").stdout
    assert json.loads(brittle("study", "show", "song-2017", "--set", "rows=5").stdout)["rows"] == 5


def test_a_study_runs_on_a_folder_of_images(brittle, tmp_path):
    random = np.random.default_rng(0)
    for name in ("<b>cats</b>", "dogs"):
        (tmp_path / "mine" / name.replace("/", "")).mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(0, 255, (20, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "mine" / name.replace("/", "") / f"{number}.png")
    settings = [f"data={tmp_path / 'mine'}", "training.epochs=1", "rows=4"]
    done = brittle("study", "run", "quickstart", *(part for s in settings for part in ("--set", s)))
    assert "song_2" in done.stdout


@pytest.mark.slow
def test_songs_study_runs_on_real_mnist(brittle, data_root, monkeypatch):
    monkeypatch.setenv("BRITTLE_DATA", str(data_root))
    settings = ["data=mnist", "training.epochs=0", "rows=3"]
    done = brittle("study", "run", "song-2017", *(part for s in settings for part in ("--set", s)), "--json")
    assert json.loads(done.stdout)


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["study", "run", "quickstar"], "unknown study 'quickstar': did you mean 'quickstart'?"),
        (["study", "run", "no.toml"], "study file no.toml cannot be read"),
        (["study", "run", "quickstart", "--set", "epochs"], "--set needs KEY=VALUE"),
        (["study", "run", "quickstart", "--set", "data=minst"], "unknown data set or folder 'minst': did you mean"),
        (["study", "run", "quickstart", "--set", "training.temperature=-1"], "must be a positive finite number"),
        (["study", "run", "quickstart", "--set", "training.epochs=-1"], "epochs must be at least 0, got -1"),
        (
            ["study", "run", "quickstart", "--set", "training.epoch=3"],
            "training.epoch: unknown key, did you mean epochs?",
        ),
        (["study", "run", "quickstart", "--device", "tpu"], "device must be auto, cpu or cuda[:N], got 'tpu'"),
        (["study", "run", "quickstart", "--dtype", "float8"], "unknown dtype 'float8'"),
        (["study", "run", "song-2017"], "mnist"),
        (["train", "--temperature", "nan"], "temperature must be a positive finite number, got nan"),
        (["train", "--network", "papernot_mnits"], "did you mean 'papernot_mnist'"),
        (["train", "--learning-rate", "-1"], "learning_rate must be positive and finite, got -1"),
        (["attack", "abc", "--attack", "song_9"], "unknown attack 'song_9': did you mean"),
        (["attack", "abcdef", "--attack", "song_1"], "abcdef"),
        (
            ["attack", "no.pt", *ON, "--network", "mlp", "--attack", "song_1"],
            "model no.pt cannot be read",
        ),
        (
            ["attack", "abc", *ON, "--attack", "song_1", "--option", "pixels=3"],
            "attacks.song_1.pixels: unknown option of song_1 'pixels'",
        ),
        (["report", "quickstart"], "quickstart"),
        (["data", "check", "minst"], "did you mean 'mnist'"),
        (["data", "fetch", "digits"], "digits is built in"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(brittle, empty_roots, arguments, said):
    assert said in one_line(brittle(*arguments, code=2))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Usage: brittle"),
        (["trian"], "error: No such command 'trian'"),
        (["attack"], "error: Missing argument 'model'"),
        (["audit", "abc", "--seed", 10**22], "error: Invalid value for '--seed'"),
        (["demo", "--threads", 10**9], "error: Invalid value for '--threads'"),
        (["train", "--output", ""], "a folder must be named, got an empty text"),
        (["train", "--output", "a\0b"], "a folder's name has no NUL, got 'a\\x00b'"),
        (["train", "--store", "a\0b"], "a folder's name has no NUL, got 'a\\x00b'"),
        (["train", "--output", "/proc/no"], "error: --output /proc/no cannot be written: "),
        (["attack", "abc", "--attack", "pgd", "--arithmetic", "foo"], "error: unknown arithmetic 'foo'"),
        (["attack", "abc", "--attack", "class_mask"], "error: unknown attack 'class_mask'"),
        (["attack", "mine.pt", "--attack", "pgd"], "error: --data is needed"),
        (["study", "run", "lo-ding"], "models: missing; its sizes, for --size, are cifar10, faces"),
    ],
)
def test_usage_errors_get_one_line_and_exit_code_2(brittle, arguments, said):
    done = brittle(*arguments, code=2)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1 or not arguments


@pytest.mark.parametrize("arguments", [["-h"], ["help"], ["version"], ["--version"]])
def test_help_and_version_have_their_usual_names(brittle, arguments):
    assert brittle(*arguments).stdout.startswith("Usage: brittle" if "h" in arguments[0] else "0.")


def test_escape_sequences_of_names_do_not_reach_the_terminal(brittle):
    said = brittle("study", "run", "\x1b[31mred\x9b.toml", code=2).stderr
    assert "\x1b" not in said
    assert "\x9b" not in said
    assert "[31mred" in said


def test_studies_in_the_store_are_listed_and_say_what_made_them(brittle):
    brittle("train", "--network", "mlp", "--epochs", 0, "--name", "mine", "-q")
    row = json.loads(brittle("study", "list", "--json").stdout)["mine"]
    assert (row["title"], row["stored"]) == ("One network on digits", "3 of 3 cells")
    assert Store(os.environ["BRITTLE_HOME"]).read_study("mine")["again"] == (
        "brittle train --network mlp --epochs 0 --name mine -q"
    )
    said = one_line(brittle("study", "run", "mine", code=2))
    assert "'brittle train --network mlp --epochs 0 --name mine -q' makes it again" in said
    network = next(row for row in json.loads(brittle("store", "list", "--json").stdout) if "network" in row)
    assert (network["network"], network["data"], network["T"]) == ("mlp", "digits", "1")
    assert network["accuracy"].endswith(" %")


def test_the_data_of_a_network_are_its_own_until_others_are_named(brittle, tmp_path):
    random = np.random.default_rng(0)
    images, labels = random.random((60, 1, 28, 28)).astype(np.float32), np.arange(60) % 10
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    np.savez(tmp_path / "small.npz", images=images[:, :, :8, :8], labels=labels)
    said = brittle("train", "--network", "mlp", "--epochs", 0, "--data", tmp_path / "mine.npz").stderr
    key = said.rpartition("brittle attack ")[2].split()[0]
    asked = ["attack", key, "--attack", "fgsm", "--rows", 4]
    done = brittle(*asked, "--json")
    assert json.loads(done.stdout)["data"]["name"] == "mine"
    assert "trained on" not in done.stderr
    assert (
        f"this network was trained on {tmp_path / 'mine.npz'}; digits has other images" in brittle(*asked, *ON).stderr
    )
    said = brittle(*asked, "--data", tmp_path / "small.npz", "-q", code=2).stderr.splitlines()[-1]
    assert said.startswith("error: small: the model fails on images (2, 1, 8, 8): ")
    assert "only 10 test images; all are used" in brittle(*asked, "--rows", 5000).stderr


def test_two_results_have_two_pages_and_a_failed_run_replaces_none(brittle, tmp_path):
    for seed in (0, 1):
        brittle("train", "--network", "mlp", "--epochs", 0, "--seed", seed, "-q")
    assert len(list((tmp_path / "home" / "reports").iterdir())) == 2
    key = Store(tmp_path / "home").read_study(Store(tmp_path / "home").studies()[0])["models"][0]["train"]
    asked = ["explain", key, "--random", 0, "--points", 2, "--knockout", "3", "--name", "x", "-q"]
    brittle(*asked, "--images", 30)
    page = (tmp_path / "home" / "reports" / "x" / "report.html").read_bytes()
    brittle(*asked, "--images", 30, "--layers", "nosuch", code=2)
    assert (tmp_path / "home" / "reports" / "x" / "report.html").read_bytes() == page


def test_a_full_disk_and_a_reader_that_goes_away(brittle, finished):
    code = "from brittle.cli.main import main; main()"
    line = shlex.join([sys.executable, "-c", code, "report", "quickstart", "--store", str(finished)])
    full = subprocess.run(f"{line} > /dev/full", shell=True, stderr=subprocess.PIPE, text=True)
    assert (full.returncode, full.stderr.count("\n")) == (2, 1)
    assert "No space left on device" in full.stderr
    for arguments in ("report quickstart", "store verify", "--help"):
        line = shlex.join([sys.executable, "-c", code, *arguments.split()])
        gone = subprocess.run(
            ["bash", "-c", f"{line} | true; echo ${{PIPESTATUS[0]}}"],
            env={**os.environ, "BRITTLE_HOME": str(finished)},
            capture_output=True,
            text=True,
        )
        assert (gone.stdout, gone.stderr) == ("0\n", ""), arguments


def test_divergence_is_said_and_nothing_is_lost(brittle, tmp_path):
    said = one_line(brittle("train", "--learning-rate", "1e9", "--epochs", 2, "-q", code=2))
    assert "training diverged: the loss is" in said
    assert len(Store(tmp_path / "home").keys()) == 1  # the rows


def test_weights_that_change_after_they_were_read_are_not_the_cell_s(brittle, tmp_path):
    file = tmp_path / "mine.safetensors"
    save_file(build(papernot_mnist, seed=5).state_dict(), file)
    of = ["--network", "papernot_mnist", "--data", "digits"]
    brittle("attack", file, *of, "--attack", "fgsm", "--rows", 2, "-q")
    store = Store(tmp_path / "home")
    (key,) = adopted(store)
    brittle("attack", key, "--data", "digits", "--attack", "fgsm", "--rows", 2, "-q")
    save_file(build(papernot_mnist, seed=6).state_dict(), file)
    network_cell._held.clear()  # as another process has nothing in memory
    said = one_line(brittle("attack", key, "--data", "digits", "--attack", "fgsm", "--rows", 3, "-q", code=2))
    assert "mine.safetensors has changed since it became cell" in said
    brittle("attack", file, *of, "--attack", "fgsm", "--rows", 2, "-q")
    assert len(adopted(store)) == 2


def adopted(store):
    """The keys of models from elsewhere."""
    return [key for key in Store(store.root).keys() if (cell := store.get(key)) and cell.record["function"] == "adopt"]  # noqa: SIM118


@pytest.mark.parametrize("command", [["attack", "--attack", "fgsm"], ["explain", "--images", "5"]])
def test_weights_of_nan_are_refused_before_any_work(brittle, tmp_path, command):
    file = tmp_path / "mine.safetensors"
    save_file({name: value * float("nan") for name, value in build(papernot_mnist, seed=5).state_dict().items()}, file)
    asked = [command[0], file, "--network", "papernot_mnist", *ON, *command[1:], "-q"]
    assert "the network answers images of digits with numbers that are not finite" in one_line(brittle(*asked, code=2))
    assert not Store(tmp_path / "home").keys()


def test_weights_that_do_not_fit_are_refused(brittle, tmp_path):
    file = tmp_path / "mine.safetensors"
    save_file(build(papernot_mnist, seed=5, classes=7).state_dict(), file)
    of = ["--network", "papernot_mnist", "--data", "digits"]
    assert "mine.safetensors do not fit the model; of another shape" in one_line(
        brittle("attack", file, *of, "--attack", "song_1", "--rows", 6, "-q", code=2)
    )


def test_a_network_with_the_wrong_number_of_classes_is_refused(brittle, tmp_path, monkeypatch):
    (tmp_path / "cli_test_nets.py").write_text(
        "from torch import nn\ndef seven(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 7))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    said = one_line(brittle("train", "--network", "cli_test_nets.seven", "--epochs", 1, "-q", code=2))
    assert "must return 10 logits an image, got shape (1, 7)" in said


def test_a_cell_of_a_network_from_outside_brittle_needs_trust(brittle, tmp_path, monkeypatch):
    (tmp_path / "cli_test_softmax.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Softmax(1))\n"
    )
    monkeypatch.chdir(tmp_path)
    said = brittle("train", "--network", "cli_test_softmax:net", "--epochs", 1).stderr
    key = said.rpartition("brittle attack ")[2].split()[0]
    assert said.count("--trust") == 3
    refused = one_line(brittle("attack", key, "--attack", "song_1", "--rows", 5, code=2))
    assert "network 'cli_test_softmax.net' is code from outside brittle, and was not run: --trust allows it" in refused
    done = brittle("attack", key, "--attack", "song_1", "--rows", 5, "--trust")
    assert "look like probabilities" in done.stderr


def test_a_store_that_cannot_be_written_is_said(brittle, tmp_path):
    (tmp_path / "file").write_text("")
    said = one_line(brittle("demo", "--store", tmp_path / "file", code=2))
    assert str(tmp_path / "file") in said


def test_images_of_mixed_sizes_and_empty_classes_are_said_by_name(brittle, tmp_path):
    (tmp_path / "empty" / "cats").mkdir(parents=True)
    assert "cats" in one_line(brittle("train", "--data", tmp_path / "empty", code=2))
    for name, size in (("cats", 8), ("dogs", 9)):
        (tmp_path / "mixed" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (size, size)).save(tmp_path / "mixed" / name / f"{number}.png")
    said = one_line(brittle("train", "--data", tmp_path / "mixed", code=2))
    assert re.search(r"cats/\d.png is 8 x 8 and .*dogs/\d.png is 9 x 9 pixels", said)


# What is interrupted ------------------------------------------------------------------------------------------------


def command(home: Path, *arguments: str) -> subprocess.Popen:
    """The real command, in a process of its own, with Ctrl-C as at a terminal also where the tests run without one."""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from brittle.cli.main import main; main()"
    line = [sys.executable, "-c", code, "study", "run", "quickstart", *arguments, "--store", str(home), "-v"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_exits_with_130(tmp_path):
    running = command(tmp_path, "--set", "training.epochs=200", "--set", "rows=12")
    while not Store(tmp_path).keys():
        time.sleep(0.1)
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "finished cells are kept" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_two_workers_share_the_cells_and_find_the_same(tmp_path, finished):
    shared = command(tmp_path / "shared", *SMALL, "--threads", "1", "--workers", "2")
    said = shared.communicate(timeout=300)[1]
    assert shared.returncode == 0, said
    assert cells_of(tmp_path / "shared") == cells_of(finished)


@pytest.mark.slow
def test_workers_end_with_the_process_that_began_them(tmp_path):
    running = command(tmp_path, "--set", "training.epochs=500", "--set", "seeds=[0, 1]", "--workers", "2")
    deadline, steady = time.monotonic() + 120, 0
    while steady < 10 and time.monotonic() < deadline:  # both at long work, and not at the rows, which take no time
        steady = steady + 1 if len(list(tmp_path.glob("locks/[0-9a-f]*.lock"))) == 2 else 0
        time.sleep(0.1)
    assert steady == 10
    running.kill()
    running.communicate(timeout=120)  # ends when the worker does, which has the same output
    Store(tmp_path).clean()  # takes the lock of the killed one; the worker gave its own back
    assert not list(tmp_path.glob("locks/*.lock"))
