"""Trained models as what other programs read: torch.export, ONNX, safetensors, folders of diffusers, the hub."""
