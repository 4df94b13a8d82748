"""`linkproof demo`: a small Qwen3 on two virtual GPUs, the link between them broken, what a person then sees, and how it is found and mended.

story.py            the five steps, each from what really ran
model.py            the model that is shipped here, on two virtual GPUs; the ways in which their link lies
train.py            how model.safetensors and config.json were made
"""
