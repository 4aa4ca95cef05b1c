"""Makes dud's home: its cache of registries, as a pull would have left it, with one image of the
files in a folder; and the root file system that dud itself builds of it.

Usage: dud_image.py FOLDER HOME
"""

import hashlib
import json
import sys
import tarfile
from pathlib import Path

import dud.images
from dud.images import registry

# No registry answers there, so dud takes what it has.
IMAGE = "localhost:1/guest:latest"


def main(folder, home):
    cache = registry.Registry(home)

    def blob(content):
        digest = hashlib.sha256(content).hexdigest()
        (cache.blobs / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    layer = home / "layer"
    with tarfile.open(layer, "w") as tar:
        tar.add(folder, arcname=".")
    environment = ["PATH=/usr/local/bin:/usr/bin:/bin"]
    manifest = {
        "schemaVersion": 2,
        "config": blob(json.dumps({"config": {"Env": environment}}).encode()),
        "layers": [blob(layer.read_bytes())],
    }
    layer.unlink()
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    resolved = cache._resolution_path(registry.ImageRef.parse(IMAGE), "amd64")
    resolved.parent.mkdir(parents=True)
    resolved.write_text(json.dumps({"digest": f"sha256:{digest}", "manifest": manifest}))
    dud.images.build(IMAGE, arch="amd64", medium="initramfs", home=home)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
