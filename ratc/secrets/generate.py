"""Generates ``ratc/facts/secret_shapes.json`` from detect-secrets: ``python -m ratc.secrets.generate``.

detect-secrets (Apache-2.0) keeps the forms of the keys that services issue. Importing it takes 0.3 s and brings an HTTP
client, which it verifies keys with; the compiler reads the generated patterns instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: Its detectors that are left out: names, URLs and private keys are read by :mod:`ratc.secrets.redact`, which has to
#: know where they end; randomness alone would call every digest of a commit a secret.
LEFT_OUT = (
    "ArtifactoryDetector",
    "BasicAuthDetector",
    "Base64HighEntropyString",
    "CloudantDetector",
    "HexHighEntropyString",
    "IPPublicDetector",
    "IbmCloudIamDetector",
    "IbmCosHmacDetector",
    "JwtTokenDetector",
    "KeywordDetector",
    "PrivateKeyDetector",
    "SoftlayerDetector",
)


def shapes() -> str:
    """Return the text of the file: the version, and each pattern with its flags and the kind of secret it finds."""
    from detect_secrets.__version__ import VERSION
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    plugins: dict[str, Any] = get_mapping_from_secret_type_to_class()
    patterns = [
        {"finds": finds, "pattern": pattern.pattern, "flags": int(pattern.flags)}
        for finds, plugin in sorted(plugins.items())
        if plugin.__name__ not in LEFT_OUT
        for pattern in plugin.denylist
    ]
    tree = {"source": f"detect-secrets {VERSION}, Apache-2.0", "patterns": patterns}
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write the file."""
    (Path(__file__).parents[1] / "facts" / "secret_shapes.json").write_text(shapes())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
