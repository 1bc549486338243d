"""What a server takes while nobody renders: PyTorch and diffusers are its workers'."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ASK = """
import json, sys
from pathlib import Path
from fastapi.testclient import TestClient
from radial_app.server.app import make_app
from radial_app.server.service import ServerPaths
from radial_app.studio.mount import open_studio
folder = Path(sys.argv[1])
with TestClient(make_app(ServerPaths(folder, folder / "out"), open_page=open_studio), base_url="http://127.0.0.1") as c:
    c.get("/").raise_for_status()
    clip = {"prompt": "a red circle rises", "num_frames": 129}
    for path in ("models", "fields", "queue", "adapters", "videos?limit=5", "plan.png", "about", "tuning", "datasets"):
        c.get(f"/v1/{path}").raise_for_status()
    for body in (clip, clip | {"model": "wan2.1-14b", "num_frames": 81}):
        plan = c.post("/v1/videos/check", json=body)
        plan.raise_for_status()
        assert plan.json()["memory"]
    c.post("/v1/lists", json={"text": "a {red|blue} star"}).raise_for_status()
    id_ = c.post("/v1/videos", json=clip).json()["id"]
    c.post("/gradio/gradio_api/run/status", json={"fn_index": 1, "data": [id_]}).raise_for_status()
heavy = {"torch", "diffusers", "transformers", "triton", "peft"}
print(json.dumps(sorted(heavy & {name.partition(".")[0] for name in sys.modules})))
"""


def test_what_visitors_ask_loads_no_torch(tmp_path: Path) -> None:
    told = subprocess.run([sys.executable, "-c", ASK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout.splitlines()[-1]) == []
