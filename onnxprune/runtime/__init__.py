"""Sessions, latency and profiles: the only importer of ONNX Runtime."""
