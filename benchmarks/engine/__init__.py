"""Compare the engine with PEFT, transformers and the released DLP-LoRA code on the same requests."""
