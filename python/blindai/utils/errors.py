"""The exceptions of BlindAI 0.3, under their names."""

from blindai._errors import AttestationError, SignatureError, VersionError

__all__ = ["AttestationError", "SignatureError", "VersionError"]
