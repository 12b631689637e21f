"""Every example, run as a person would run it, on real input; its answer is checked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import inputs
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from support import PATIENCE, ROOT, Server
from test_tutorial import TUTORIAL

import blindai
from tools import models

EXAMPLES = ROOT / "examples"
INPUTS = models.TESTDATA / "inputs"
# What the scripts share; all others are examples.
SHARED = {"audio", "compare", "connection", "demo", "embeddings"}
SCRIPTS = sorted({path.stem for path in EXAMPLES.glob("*.py")} - SHARED)
# Stands in for the package of that name: its microphone hears a file.
MICROPHONE = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
sys.path.insert(0, {str(ROOT)!r})
import inputs

def rec(frames, samplerate, channels, dtype, blocking):
    assert (samplerate, channels, dtype, blocking) == (16000, 1, "float32", True)
    return inputs.speech()[:frames, None]
"""


class Runner:
    """Runs examples against a server, in a folder of their own."""

    def __init__(self, server: Server, folder: Path):
        self.server = server
        self.folder = folder

    def __call__(self, script: str, *arguments: object) -> str:
        """What an example prints after the report."""
        done = self.run(script, "--simulation", *arguments)
        assert done.returncode == 0, done.stderr
        assert "SIMULATED: this protects nothing" in done.stdout
        assert "SIMULATION PROTECTS NOTHING" in done.stderr
        report_and_answer = done.stdout.partition("config_digest")[2]
        return report_and_answer.partition("\n")[2]

    def run(self, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        path = [str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.run(
            [sys.executable, EXAMPLES / f"{script}.py", "--server", self.server.address]
            + [str(argument) for argument in arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )


@pytest.fixture
def example(server: Server, client: blindai.Client, tmp_path: Path) -> Iterator[Runner]:
    before = client.models.list()
    yield Runner(server, tmp_path)
    assert client.models.list() == before, "an example left a model behind"


def test_wav2vec2_reads_the_mp3_of_the_tutorial_and_the_microphone(example: Runner):
    sound = INPUTS / "hello_world.wav"
    assert sound.read_bytes()[:4] != b"RIFF", "it is an mp3, whatever its name"
    (example.folder / "sounddevice.py").write_text(MICROPHONE)
    model = models.build("wav2vec2_base_logits")
    said = example("wav2vec2", sound, "--microphone", "1.806", "--model", model, "--compare")
    assert "hello_world.wav: HELLO WORLD\n" in said
    assert "microphone: HELLO WORLD\n" in said
    assert said.count("same model in this process") == 2


def test_whisper_reads_wav_and_mp3(example: Runner):
    models.build("whisper_tiny_en_encoder")
    models.build("whisper_tiny_en_decoder")
    said = example("whisper", INPUTS / "hello_world_16k.wav", INPUTS / "hello_world.wav")
    assert said == "hello_world_16k.wav: Hello world.\nhello_world.wav: Hello world.\n"


def test_without_a_microphone_it_says_what_to_install(example: Runner):
    broken = 'raise OSError("PortAudio library not found")\n'
    (example.folder / "sounddevice.py").write_text(broken)
    done = example.run("whisper", "--simulation", "--microphone", "1")
    assert done.returncode == 1
    assert "no microphone: PortAudio library not found. It needs `pip install" in done.stderr
    assert not done.stdout, "it looks for the microphone before it connects"


@pytest.mark.parametrize("model", ["distilbert", "bert_base"])
def test_text_classifiers_compute_what_this_process_computes(example: Runner, model: str):
    texts = ["A wonderful film.", "Two hours of my life that nobody gives me back."]
    said = example("classify_text", "--model", models.build(model), "--compare", *texts)
    assert said.startswith("same model in this process: outputs up to ")
    assert "positive" not in said


def test_search_finds_by_meaning(example: Runner):
    models.build("minilm_l6_v2_sentence_embedding")
    said = example("search", "Which train goes to the sea?", "--top", "1")
    score, text = said.rstrip().split("  ")
    assert text == "The train to the coast leaves at a quarter past nine."
    assert float(score) > 0.5


def test_a_dozen_examples_teach_three_labels(example: Runner):
    models.build("minilm_l6_v2_sentence_embedding")
    texts = ["My card was charged twice.", "The page stays blank.", "The courier never came."]
    said = example("few_shot", *texts)
    assert [line.split()[0] for line in said.splitlines()] == ["billing", "fault", "delivery"]


def test_pictures_are_named(example: Runner):
    models.build("efficientnet_lite0")
    said = example("classify_image", INPUTS / "coffee.jpg", INPUTS / "chelsea.jpg")
    coffee, cat = said.splitlines()
    assert re.match(r"coffee\.jpg: espresso 0\.9\d\d; ", coffee)
    assert re.match(r"chelsea\.jpg: (tiger cat|Egyptian cat|tabby)", cat)


@pytest.mark.parametrize("model", ["resnet50", "mobilenet_v2"])
def test_torchvision_networks_compute_what_this_process_computes(example: Runner, model: str):
    options = ["--torchvision", "--compare", "--model", models.build(model)]
    said = example("classify_image", *options, INPUTS / "chelsea.jpg")
    assert said.startswith("same model in this process: outputs up to ")
    assert "cat" not in said


def test_boxes_are_drawn_where_they_are_said_to_be(example: Runner):
    models.build("yolov5s")
    said = example("detect_objects", "--compare", "--most", "5", INPUTS / "coffee.jpg")
    assert "same model in this process: outputs up to " in said
    boxes = re.findall(r"^class \d+ 0\.\d\d at (\d+),(\d+) to (\d+),(\d+)$", said, re.MULTILINE)
    assert len(boxes) == 5
    drawn = np.asarray(Image.open(example.folder / "detected.png"))
    assert drawn.shape == (400, 600, 3)
    for left, top, right, bottom in [map(int, box) for box in boxes]:
        assert 0 <= left < right <= 600
        assert 0 <= top < bottom <= 400
        assert (drawn[top, left:right] == [255, 0, 0]).all()
        assert (drawn[top:bottom, left] == [255, 0, 0]).all()
    before = np.asarray(Image.open(INPUTS / "coffee.jpg"))
    assert (drawn == before).all(axis=2).mean() > 0.9


def test_text_in_a_picture_is_read(example: Runner):
    models.build("ppocr_v4_det")
    models.build("ppocr_v4_rec")
    said = example("read_text", INPUTS / "page.png").splitlines()
    assert said[:2] == [
        "Region-based segmentation",
        "Let us first determine markers of the coins and the",
    ]
    # The model often loses the spaces between small words.
    assert "".join(said[2].split()) == "background.Thesemarkersarepixelsthatwecanlabel"


def test_a_face_is_known_again_and_a_cat_is_nobody(example: Runner):
    models.build("face_resnet")
    with Image.open(INPUTS / "astronaut_face.png") as face:
        mirrored = ImageOps.mirror(ImageEnhance.Brightness(face).enhance(0.6))
        mirrored.resize((64, 64)).save(example.folder / "mirrored.png")
    with Image.open(INPUTS / "chelsea.jpg") as cat:
        cat.crop((110, 10, 330, 230)).save(example.folder / "cat.png")
    said = example("compare_faces", INPUTS / "astronaut_face.png", "mirrored.png", "cat.png")
    assert re.findall(r"and (\w+)\.png: (\w+), distance 0\.\d\d", said) == [
        ("mirrored", "same"),
        ("cat", "different"),
    ]


@pytest.mark.parametrize("method", ["isolation-forest", "local-outlier-factor", "one-class-svm"])
def test_anomalies_are_found_as_scikit_learn_finds_them(example: Runner, method: str):
    said = example("find_anomalies", "--method", method)
    counts = {
        kind: int(found) / int(total)
        for found, total, kind in re.findall(r"flagged (\d+) of (\d+) (\w+)", said)
    }
    assert counts["malignant"] > 0.7
    assert counts["benign"] < 0.2
    # One that lies on the border may fall to either side in single precision.
    assert float(re.search(r"says the same of ([\d.]+)%", said)[1]) > 99


def test_a_small_covid_net_reads_digits(example: Runner):
    said = example("covid_net")
    assert int(re.search(r"^(\d+) of 200 pictures", said, re.MULTILINE)[1]) > 175


def test_a_server_that_the_policy_does_not_trust_is_refused(example: Runner):
    policy = example.folder / "policy.toml"
    policy.write_text(f'tee = ["sgx"]\n[sgx]\nmrenclave = ["{"77" * 32}"]\n')
    done = example.run("search", "--policy", policy, "Who are you?")
    assert done.returncode == 1
    assert "AttestationError" in done.stderr
    assert not done.stdout


def test_a_difference_ends_the_comparison(tmp_path: Path):
    model = models.build("cnn2d_digits")
    code = f"""
import sys
sys.path.insert(0, {str(EXAMPLES)!r})
import numpy as np, onnxruntime
from compare import compare
from pathlib import Path
session = onnxruntime.InferenceSession({str(model)!r})
(given,) = session.get_inputs()
shape = [n if isinstance(n, int) else 1 for n in given.shape]
inputs = {{given.name: np.ones(shape, np.float32)}}
outputs = {{o.name: a for o, a in zip(session.get_outputs(), session.run(None, inputs))}}
compare(Path({str(model)!r}), inputs, outputs)
print("equal")
compare(Path({str(model)!r}), inputs, {{k: v + np.abs(v).max() for k, v in outputs.items()}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "equal\n" in done.stdout, done.stderr
    assert done.returncode == 1
    assert "the server and this process do not agree" in done.stderr


def test_every_example_has_a_page_and_a_line_in_the_index():
    pages = {path.stem for path in EXAMPLES.glob("*.md")} - {"README"}
    assert sorted(pages) == SCRIPTS
    index = (EXAMPLES / "README.md").read_text()
    for name in SCRIPTS:
        assert f"[{name}.py]({name}.md)" in index


def test_the_page_of_wav2vec2_is_the_tutorial():
    page = (EXAMPLES / "wav2vec2.md").read_text()
    for line in TUTORIAL.strip().splitlines():
        assert f"\n{line}\n" in page


def test_both_lists_of_requirements_agree():
    def pins(path: Path) -> dict[str, str]:
        return dict(re.findall(r"^([\w-]+)==(\S+)", path.read_text(), re.MULTILINE))

    ours, tests = pins(EXAMPLES / "requirements.txt"), pins(ROOT / "tools/requirements-test.txt")
    assert {name: ours[name] for name in ours.keys() & tests} == {
        name: tests[name] for name in ours.keys() & tests
    }


def test_the_samples_of_mp3_and_wav_are_the_same(tmp_path: Path):
    code = "import audio, numpy, sys; numpy.save('s.npy', audio.read(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", code, INPUTS / "hello_world.wav"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES)},
        check=True,
    )
    decoded, stored = np.load(tmp_path / "s.npy"), inputs.speech()
    assert decoded.shape == stored.shape
    assert np.corrcoef(decoded, stored)[0, 1] > 0.999
