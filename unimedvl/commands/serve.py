"""Answer over HTTP as an OpenAI endpoint: chat with images, responses, images made and edited.

  unimedvl serve --model owner/name
  UNIMEDVL_API_KEY=... unimedvl serve --host 0.0.0.0 --port 8000

docs/serving.md has the routes, the limits and what is logged.
"""

import os
from typing import Annotated

from typer import Option

from ..utils.command_line import require
from ..utils.loopback import LOOPBACK
from .shared import NOTICE, Base, Device, Dtype, Model, Quantize, Revision, silence_loading

KEY_VARIABLE = "UNIMEDVL_API_KEY"


def serve(
    model: Model = None,
    revision: Revision = None,
    base: Base = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quantize: Quantize = None,
    host: Annotated[str, Option(metavar="H", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Option(metavar="P", min=1, max=65535, help="Port to listen on.")] = 8000,
    api_key: Annotated[
        str | None,
        Option(metavar="KEY", envvar=KEY_VARIABLE, show_envvar=False, help=f"Ask clients for it (or {KEY_VARIABLE})."),
    ] = None,
    allow_url: Annotated[bool, Option("--allow-url", help="Fetch images from public http(s) addresses.")] = False,
    max_body_mb: Annotated[int, Option(metavar="MIB", help="Size of a request.")] = 64,
    max_total_mb: Annotated[
        int, Option(metavar="MIB", help="Size of all requests inside; more get status 429.")
    ] = 256,
    max_images: Annotated[int, Option(metavar="N", help="Input images of a request.")] = 8,
    max_pixels: Annotated[int, Option(metavar="N", help="Pixels of an input image.")] = 20_000_000,
    max_total_pixels: Annotated[int, Option(metavar="N", help="Pixels of a request's input images.")] = 80_000_000,
    max_n: Annotated[int, Option(metavar="N", help="Images that one request makes.")] = 4,
    max_prompt: Annotated[int, Option(metavar="N", help="Characters of a request's texts.")] = 32_768,
    max_tokens: Annotated[int, Option(metavar="N", help="Tokens of an answer.")] = 2_048,
    max_steps: Annotated[int, Option(metavar="N", help="Denoising steps.")] = 100,
    max_requests: Annotated[int, Option(metavar="N", help="Requests inside at once; more get status 429.")] = 64,
    timeout: Annotated[float, Option(metavar="S", help="Seconds until a request is answered.")] = 300.0,
    text_batch: Annotated[int, Option(metavar="N", help="Answers decoded together.")] = 8,
    image_batch: Annotated[int, Option(metavar="N", help="Images denoised together.")] = 4,
    ray: Annotated[int | None, Option(metavar="N", help="Deploy on Ray Serve with at least N replicas.")] = None,
    max_replicas: Annotated[int | None, Option(metavar="N", help="With --ray: replicas under load.")] = None,
) -> None:
    require("serve", "fastapi", "uvicorn", "multipart", "openai", "prometheus_client")
    from ..hub_cards.server.settings import Limits, Settings

    if api_key is not None and not api_key.strip():
        raise ValueError(f"the API key is empty: give one, or leave --api-key and {KEY_VARIABLE} out.")
    local = host in LOOPBACK
    if not local and api_key is None:
        raise ValueError(f"whoever reaches {host} could use the server: set {KEY_VARIABLE} to a key for the clients.")
    if max_replicas is not None and ray is None:
        raise ValueError("--max-replicas needs --ray.")
    limits = Limits(
        body_mb=max_body_mb,
        total_mb=max_total_mb,
        images=max_images,
        pixels=max_pixels,
        total_pixels=max_total_pixels,
        n=max_n,
        prompt_characters=max_prompt,
        new_tokens=max_tokens,
        steps=max_steps,
        requests=max_requests,
        seconds=timeout,
        text_batch=text_batch,
        image_batch=image_batch,
    )
    settings = Settings(
        notice=NOTICE,
        model=model,
        revision=revision,
        base=base,
        dtype=dtype,
        device=device,
        quantize=quantize,
        api_key=api_key,
        allow_url=allow_url,
        hosts=(*LOOPBACK, "[::1]") if local else None,
        limits=limits,
    )
    silence_loading()
    if ray is not None:
        require("ray", "ray")
        # Ray reads it when it is imported; older versions would let anyone of this machine connect.
        if "RAY_ADDRESS" not in os.environ:
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        from ..hub_cards.server.ray_serve import run_on_ray

        run_on_ray(settings, host, port, ray, max_replicas or ray)
        return
    from ..hub_cards.server.run import run

    run(settings, host, port)
