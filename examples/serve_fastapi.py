"""An exported model as a web service: a picture in, its classes out, as JSON.

    keras-mixer export mixer.onnx --model run/model.keras
    python examples/serve_fastapi.py mixer.onnx run/model.keras
    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' 127.0.0.1:8000/classify

The model says how pictures are prepared. Needs the extras export and serve.
"""

import asyncio
import io
import sys
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from PIL import Image

from keras_mixer import decode_predictions, export, hub, preprocess

MAX_BYTES, MAX_PIXELS, MAX_REQUESTS, SECONDS = 10_000_000, 40_000_000, 32, 10
run, model = export.load(sys.argv[1]), hub.read_model(sys.argv[2])
app, worker, requests = FastAPI(), ThreadPoolExecutor(1), set()


def classify(data):
    """Return the five best classes of a picture."""
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise HTTPException(413, f"At most {MAX_PIXELS:,} pixels are taken.")
        pixels = preprocess(image, model)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise HTTPException(400, "The body is no picture that can be read.") from None
    best = decode_predictions(run(pixels), model)[0]
    return [{"class": one.name, "probability": round(one.score, 6)} for one in best]


@app.post("/classify")
async def answer(request: Request):
    """Take a picture as the body of a request."""
    if not request.headers.get("content-type", "").startswith("image/"):
        raise HTTPException(415, "Send a picture with its Content-Type, image/jpeg.")
    if len(requests) >= MAX_REQUESTS:
        raise HTTPException(503, "Too many requests at once. Try again in a second.")
    requests.add(request)
    try:
        async with asyncio.timeout(SECONDS):
            data = b""
            async for part in request.stream():
                if len(data := data + part) > MAX_BYTES:
                    raise HTTPException(413, f"At most {MAX_BYTES:,} bytes are taken.")
            return {"classes": await asyncio.wrap_future(worker.submit(classify, data))}
    except TimeoutError:
        raise HTTPException(408, f"More than {SECONDS} seconds.") from None
    finally:
        requests.discard(request)


uvicorn.run(app, port=int(sys.argv[3]) if len(sys.argv) > 3 else 8000)
