"""Steps with the original client of BlindAI 0.3.1, run by the old Python it needs.

Reads a step and its arguments as JSON from standard input; writes what came of it as JSON.
"""

import hashlib
import json
import logging
import sys
import time
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

from blindai.client import (  # noqa: E402
    BlindAiClient,
    ModelDatumType,
    RunModelResponse,
    UploadModelResponse,
)


def connected(ports, **options):
    client = BlindAiClient()
    public, attested = ports
    options.setdefault("simulation", True)
    client.connect_server("localhost", untrusted_port=public, attested_port=attested, **options)
    return client


def key_of(client):
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return client.enclave_signing_key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def session(ports, folder, models):
    """Everything that its users do, with each model; the proofs stay in files."""
    client = connected(ports)
    key, answers = key_of(client), []
    for name, model, shape, dtype, data in models:
        dtype = ModelDatumType[dtype]
        client.upload_model(model, shape=shape, dtype=dtype, dtype_out=dtype)
        plain = client.run_model(data)
        upload = client.upload_model(model, shape=shape, dtype=dtype, dtype_out=dtype, sign=True)
        run = client.run_model(data, sign=True)
        upload.save_to_file(folder + "/" + name + ".upload")
        run.save_to_file(folder + "/" + name + ".run")
        digest = hashlib.sha256(Path(model).read_bytes()).hexdigest()
        # As they are, and as they are loaded again.
        upload.validate(bytes.fromhex(digest), allow_simulation_mode=True)
        run.validate(data, allow_simulation_mode=True)
        paths = [folder + "/" + name + kind for kind in (".upload", ".run")]
        validate(paths, key, digest, data)
        answers.append([plain.output, run.output])
    client.close_connection()
    return {"key": key, "answers": answers, "connected": client.is_connected()}


def validate(paths, key, digest, data, ports=None):
    """Loads the proofs of an upload and of a run, and checks their signatures."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signer = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
    upload, run = UploadModelResponse(), RunModelResponse()
    upload.load_from_file(paths[0])
    run.load_from_file(paths[1])
    trusted = {"validate_quote": False, "enclave_signing_key": signer}
    upload.validate(bytes.fromhex(digest), allow_simulation_mode=True, **trusted)
    run.validate(data, allow_simulation_mode=True, **trusted)
    return True


def renewal(ports, model, shape, seconds):
    """Keeps a connection while the server's evidence is renewed, and makes another one."""
    client = connected(ports)
    client.upload_model(model, shape=shape)
    first = client.run_model([1.0, 2.0, 3.0]).output
    time.sleep(seconds)
    return [
        first,
        client.run_model([4.0, 5.0, 6.0]).output,
        connected(ports).run_model([7.0, 8.0, 9.0]).output,
    ]


def hardware(ports, policy, certificate):
    """Connects as to a TEE."""
    try:
        connected(ports, simulation=False, policy=policy, certificate=certificate)
    except Exception as error:
        return type(error).__name__
    return "connected"


def tutorial(ports, model, samples):
    """The tutorial: a large model, in pieces of 32 KiB."""
    values = json.loads(Path(samples).read_text())
    client, started = connected(ports), time.time()
    client.upload_model(
        model=model, shape=(1, len(values)), dtype=ModelDatumType.F32, dtype_out=ModelDatumType.I64
    )
    uploaded = time.time()
    output = client.run_model(values).output
    return {"output": output, "upload": uploaded - started, "run": time.time() - uploaded}


def refused(ports):
    """What it says when the server does not speak its protocol."""
    try:
        connected(ports)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["connected", ""]


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    step, arguments = json.load(sys.stdin)
    print(json.dumps(globals()[step](**arguments)))
