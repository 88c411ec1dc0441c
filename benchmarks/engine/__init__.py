"""The engine beside PEFT, transformers and the released DLP-LoRA way, on the same requests."""
