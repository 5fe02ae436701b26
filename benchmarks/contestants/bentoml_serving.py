"""Serving, BentoML: the graph behind an asynchronous method of a service, one worker.

python bentoml_serving.py folder port
"""

import os
import sys
from pathlib import Path

if __name__ != "__main__":
    import bentoml
    from bare_serving import forecast

    @bentoml.service(workers=1, logging={"access": {"enabled": False}})
    class Forecast:
        """One window in, one forecast out."""

        @bentoml.api
        async def predict(self, features: dict[str, list[float]]) -> float:
            """In the event loop: a thread would cost more than the network."""
            return forecast(features)


def main() -> None:
    """Becomes the server."""
    here = Path(__file__).parent
    home = str(Path(sys.argv[1]) / "bentoml")
    environment = {
        **os.environ, "GIVEN": sys.argv[1], "PYTHONPATH": str(here), "BENTOML_HOME": home,
        "BENTOML_DO_NOT_TRACK": "True",
    }  # fmt: skip
    program = str(Path(sys.executable).with_name("bentoml"))
    named = ["bentoml_serving:Forecast", "--host", "127.0.0.1", "--port", sys.argv[2], "--working-dir", str(here)]
    os.execve(program, [program, "serve", *named], environment)


if __name__ == "__main__":
    main()
